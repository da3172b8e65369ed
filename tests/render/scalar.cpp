// The functions of csrc/volume.h on single numbers, as a library for test_scalar.py.
#include "cuda/scalar.h"

using namespace cad;

template <class Function> static void each(const float* x, int count, float* found, Function function) {
  for (int i = 0; i < count; ++i) found[i] = function(x[i]);
}

extern "C" {

void cad_exponential(const float* x, int count, float* found) { each(x, count, found, exponential<float>); }
void cad_absorbed(const float* x, int count, float* found) { each(x, count, found, absorbed<float>); }
void cad_reciprocal(const float* x, int count, float* found) { each(x, count, found, reciprocal<float>); }
void cad_logistic(const float* x, int count, float* found) {
  each(x, count, found, [](float x) { return logistic(x); });
}
void cad_softplus(const float* x, int count, float* found) {
  each(x, count, found, [](float x) {
    float tail;
    return softplus(x, tail);
  });
}
void cad_softplus_slope(const float* x, int count, float* found) {
  each(x, count, found, [](float x) {
    float tail, value = softplus(x, tail);
    return value == value ? logistic(x, tail) : value;
  });
}

// found: low, high, share and slope of each coordinate.
void cad_texel(const float* x, int count, int size, float half_side, float* found) {
  for (int i = 0; i < count; ++i) {
    auto texel = cad::texel<float, int>(x[i], size, half_side);
    found[4 * i] = texel.low, found[4 * i + 1] = texel.high, found[4 * i + 2] = texel.share;
    found[4 * i + 3] = texel.slope;
  }
}

// Weights of one ray's samples.
void cad_composite(const float* density, const float* spacing, int count, float* weights) {
  float thickness = 0.f, arriving;
  for (int i = 0; i < count; ++i) weights[i] = composite(density[i], spacing[i], thickness, arriving);
}

struct Strided {
  float* first;
  float& operator[](int i) const { return first[3 * i]; }
};

// The weights' memory is the scratch, and every third number belongs to it.
void cad_inverse_distribution(float* weights, int parts, const float* wanted, int count, float uniform_share,
                              float* positions) {
  inverse_distribution(Strided{weights}, parts, wanted, count, uniform_share, Strided{weights}, positions);
}

}  // extern "C"
