// The mathematics of volume rendering, once for every device: the quadrature rule, bilinear planes and activations of
// cad/render/reference.py. T is a float on a GPU thread and a vector of rays on a CPU; I is the integer of its shape.
#pragma once

#ifdef __CUDACC__
#define CAD_HD __host__ __device__ __forceinline__
#else
#define CAD_HD inline __attribute__((always_inline))
#endif

namespace cad {

// What a device defines for its T: every() spreads a constant, power_of_two() works on bits, whole() and real() convert, rounded() forbids
// that a product is fused with the sum behind it, reciprocal() may err by 2e-7.
template <class T> CAD_HD T every(float value);
template <class T> CAD_HD T power_of_two(T shifted);
template <class T, class I> CAD_HD I whole(T x);
template <class T, class I> CAD_HD T real(I x);
template <class T> CAD_HD T rounded(T x);
template <class T> CAD_HD T reciprocal(T x);

template <class M, class T> CAD_HD T select(M condition, T yes, T no) { return condition ? yes : no; }
// NaN in b is kept, NaN in a is not.
template <class T> CAD_HD T larger(T a, T b) { return select(a > b, a, b); }
template <class T> CAD_HD T smaller(T a, T b) { return select(a < b, a, b); }

// Sum of coefficient[i] x^i, even and odd powers apart: half as many steps that wait for each other. The coefficients
// below minimise the largest relative error over their interval.
template <class T, int N> CAD_HD T polynomial(T x, const float (&coefficient)[N]) {
  T square = x * x, last = every<T>(coefficient[N - 1]), previous = every<T>(coefficient[N - 2]);
#pragma GCC unroll 16
  for (int i = N - 3; i >= 1; i -= 2) {
    last = last * square + coefficient[i];
    previous = previous * square + coefficient[i - 1];
  }
  return N % 2 ? last * square + coefficient[0] + previous * x : last * x + previous;
}

// e^x, relative error below 3e-7 for x in [-87, 88]; x beyond is clamped to it, NaN stays NaN.
template <class T> CAD_HD T exponential(T x) {
  const float shift = 12582912.f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  const float terms[] = {1.f, 1.f, 0.49999991059303284f, 0.16666419804096222f, 0.041668232530355453f,
                         0.008374898694455624f, 0.0013836742145940661f};
  x = smaller(every<T>(88.f), larger(every<T>(-87.f), x));
  T shifted = x * 1.44269504f + shift;
  T turns = shifted - shift;
  T rest = (x - turns * 0.693359375f) + turns * 2.12194440e-4f;  // ln 2 in two parts, the first of them exact
  return polynomial(rest, terms) * power_of_two(shifted);
}

// 1 - e^-x for x >= 0 without cancellation, relative error below 3e-7.
template <class T> CAD_HD T absorbed(T x) {
  const float terms[] = {1.f, -0.4999999701976776f, 0.16666601598262787f, -0.04166112095117569f,
                         0.008310718461871147f, -0.0013408411759883165f, 0.0001462126529077068f};
  return select(x < 0.7f, x * polynomial(x, terms), 1.f - exponential(-x));
}

// softplus, relative error below 1e-6 for x >= -87; tail = e^-|x|.
template <class T> CAD_HD T softplus(T x, T& tail) {
  const float terms[] = {0.9999999403953552f, -0.4999949336051941f, 0.3331909775733948f,
                         -0.2484298199415207f, 0.19106006622314453f, -0.13663244247436523f,
                         0.07822593301534653f, -0.029505226761102676f, 0.005232691299170256f};  // log(1 + x) / x
  T zero = every<T>(0.f);
  tail = exponential(select(x < 0.f, x, -x));
  return larger(x, zero) + tail * polynomial(tail, terms);
}

// The logistic function, relative error below 1e-6; the second from e^-|x| of softplus, whose derivative it is.
template <class T> CAD_HD T logistic(T x) { return reciprocal(1.f + exponential(-x)); }
template <class T> CAD_HD T logistic(T x, T tail) { return select(x < 0.f, tail, every<T>(1.f)) * reciprocal(1.f + tail); }

// Radiance in (-0.001, 1.001) from a logistic value, and its derivative by what the logistic function was given.
template <class T> CAD_HD T radiance(T s) { return s * 1.002f - 0.001f; }
template <class T> CAD_HD T radiance_slope(T s) { return s * (1.f - s) * 1.002f; }

constexpr float kDensityShift = 1.f;  // density = softplus(raw - 1)

// One coordinate of a point on a plane's texel grid, clamped to the outermost texel centres.
template <class T, class I> struct Texel {
  I low, high;  // neighbours
  T share;      // of the higher one
  T slope;      // of the texel coordinate by the point's coordinate; 0 where clamped
};

template <class T, class I> CAD_HD Texel<T, I> texel(T coordinate, int size, float half_side) {
  const float scale = 0.5f * size / half_side, last = size - 1.f;
  T zero = every<T>(0.f), x = coordinate * scale + 0.5f * last;
  Texel<T, I> found;
  found.slope = select(x > zero, select(x < last, every<T>(scale), zero), zero);
  x = select(x > zero, x, zero);  // NaN becomes 0: reads stay inside the plane
  x = select(x < last, x, every<T>(last));
  found.low = whole<T, I>(x);
  found.share = x - real<T, I>(found.low);
  I next = found.low + 1;
  found.high = select(next < size, next, found.low);
  return found;
}

template <class T> CAD_HD auto outside(T x, T y, T z, float half_side) {
  return (x > half_side) | (x < -half_side) | (y > half_side) | (y < -half_side) | (z > half_side) | (z < -half_side);
}

// One sample's share of its ray's colour; `thickness` is what lies before it, and grows by the sample's own.
template <class T> CAD_HD T composite(T density, T spacing, T& thickness, T& arriving) {
  T own = density * spacing;
  arriving = exponential(-thickness);
  thickness = thickness + own;
  return arriving * absorbed(own);
}

// Where along the chord, in [0, 1], the coarse weights of one ray lie: `positions` through their inverse distribution,
// both ascending. share: scratch of `parts` floats. See `importance` in cad/render/reference.py.
CAD_HD void inverse_distribution(const float* weights, int parts, const float* wanted, int count, float uniform_share,
                                 float* share, float* positions) {
  float sum = 0.f;
  for (int i = 0; i < parts; ++i) {
    float before = weights[i > 0 ? i - 1 : 0], here = weights[i], after = weights[i + 1 < parts ? i + 1 : parts - 1];
    share[i] = (larger(before, here) + larger(here, after)) / 2 + uniform_share / parts;
    sum += share[i];
  }
  int part = 0;
  float start = 0.f, width = share[0] / sum;
  for (int i = 0; i < count; ++i) {
    while (part + 1 < parts && start + width <= wanted[i]) {
      start += width;
      width = share[++part] / sum;
    }
    float inside = (wanted[i] - start) / width;
    positions[i] = (part + smaller(larger(inside, 0.f), 1.f)) / parts;
  }
}

}  // namespace cad
