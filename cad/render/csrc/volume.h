// The mathematics of volume rendering, once for every device: the quadrature rule, bilinear planes and activations of
// cad/render/reference.py. T is a float on a GPU thread and a vector of rays on a CPU; I is the integer of its shape.
#pragma once

#ifdef __CUDACC__
#define CAD_HD __host__ __device__ __forceinline__
#define CAD_UNROLL _Pragma("unroll")
#else
#define CAD_HD inline __attribute__((always_inline))
#define CAD_UNROLL _Pragma("GCC unroll 16")
#endif

namespace cad {

// What a device defines for its T: every() spreads a constant, power_of_two() works on bits, whole() and real()
// convert, rounded() forbids that a product is fused with the sum behind it, reciprocal() may err by 2e-7.
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
template <class T> CAD_HD T minus_absolute(T x) { return select(x < 0.f, x, -x); }

constexpr float kShift = 12582912.f;  // 1.5 * 2^23: what is added to it is rounded to an integer
// x * 2^(shifted - kShift), a whole power.
template <class T> CAD_HD T scaled(T x, T shifted) { return x * power_of_two(shifted); }

// Sum of coefficient[i] x^i, even and odd powers apart: half as many steps that wait for each other. The coefficients
// below minimise the largest relative error over their interval.
template <class T, int N> CAD_HD T polynomial(T x, const float (&coefficient)[N]) {
  T square = x * x, last = every<T>(coefficient[N - 1]), previous = every<T>(coefficient[N - 2]);
  CAD_UNROLL
  for (int i = N - 3; i >= 1; i -= 2) {
    last = last * square + coefficient[i];
    previous = previous * square + coefficient[i - 1];
  }
  return N % 2 ? last * square + coefficient[0] + previous * x : last * x + previous;
}

// e^x, relative error below 3e-7 for x in [-87, 88]; x beyond is clamped to it, NaN stays NaN.
template <class T> CAD_HD T exponential(T x) {
  const float terms[] = {1.f, 1.f, 0.499992311000824f, 0.16667115688323975f, 0.041890326887369156f,
                         0.008312487043440342f};
  x = smaller(every<T>(88.f), larger(every<T>(-87.f), x));
  T shifted = x * 1.44269504f + kShift;
  T turns = shifted - kShift;
  T rest = (x - turns * 0.693359375f) + turns * 2.12194440e-4f;  // ln 2 in two parts, the first of them exact
  return scaled(polynomial(rest, terms), shifted);
}

// 1 - e^-x for x >= 0 without cancellation, relative error below 3e-7.
template <class T> CAD_HD T absorbed(T x) {
  const float terms[] = {1.f, -0.4999999701976776f, 0.16666601598262787f, -0.04166112095117569f,
                         0.008310718461871147f, -0.0013408411759883165f, 0.0001462126529077068f};
  return select(x < 0.7f, x * polynomial(x, terms), 1.f - exponential(-x));
}

// softplus, relative error below 1e-6 for x >= -87; tail = e^-|x|.
template <class T> CAD_HD T softplus(T x, T& tail) {
  const float terms[] = {0.9999998211860657f, -0.4999740421772003f, 0.33275479078292847f, -0.24495458602905273f,
                         0.17745232582092285f, -0.10768158733844757f, 0.04408954828977585f,
                         -0.008539186790585518f};  // log(1 + x) / x
  T zero = every<T>(0.f);
  tail = exponential(minus_absolute(x));
  return larger(x, zero) + tail * polynomial(tail, terms);
}

// The logistic function, relative error below 1e-6; the second from e^-|x| of softplus, whose derivative it is.
template <class T> CAD_HD T logistic(T x) { return reciprocal(1.f + exponential(-x)); }
template <class T> CAD_HD T logistic(T x, T tail) {
  return select(x < 0.f, tail, every<T>(1.f)) * reciprocal(1.f + tail);
}

// Radiance in (-0.001, 1.001) from a logistic value, and its derivative by what the logistic function was given.
constexpr float kRadianceScale = 1.002f, kRadianceStart = -0.001f;
template <class T> CAD_HD T radiance(T s) { return s * kRadianceScale + kRadianceStart; }
template <class T> CAD_HD T radiance_slope(T s) { return s * (1.f - s) * kRadianceScale; }

constexpr float kDensityShift = 1.f;  // density = softplus(raw - 1)
constexpr int kColors = 3;             // the first features lie on white

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
// both ascending. share: scratch of `parts` floats, which may be where the weights are. See `importance` in
// cad/render/reference.py.
template <class Weights, class Share>
CAD_HD void inverse_distribution(Weights weights, int parts, const float* wanted, int count, float uniform_share,
                                 Share share, float* positions) {
  float sum = 0.f, before = weights[0], here = before;
  for (int i = 0; i < parts; ++i) {
    float after = i + 1 < parts ? weights[i + 1] : here;
    share[i] = (larger(before, here) + larger(here, after)) / 2 + uniform_share / parts;
    sum += share[i];
    before = here;
    here = after;
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

// The bit of an occupancy grid (cad/render/inference.py) that a point falls to. A cell lies between neighbouring texel
// centres of planes of `texels`^2; 2^shift cells along each axis share a bit, `side` bits make a row, x is the fastest.
template <class T, class I> CAD_HD I place_in_grid(T x, T y, T z, int texels, int shift, int side, float half_side) {
  I column = texel<T, I>(x, texels, half_side).low >> shift, row = texel<T, I>(y, texels, half_side).low >> shift;
  return ((texel<T, I>(z, texels, half_side).low >> shift) * side + row) * side + column;
}

// That bit of word `place >> 5`: 1 where density above the grid's threshold may be.
template <class I> CAD_HD I occupied(I word, I place) { return (word >> (place & 31)) & 1; }

// Whether less than 1/1000 of the light passes what lies before a sample, so that inference stops there [ours: a
// quarter of a grey level of 255]. NaN is never spent: it has to reach the picture.
constexpr float kSpent = 6.9077554f;
template <class T> CAD_HD auto spent(T thickness) { return thickness > kSpent; }

}  // namespace cad
