// Vectors of rays on a CPU: one lane is one ray. GCC's vector types; the compiler maps them to AVX-512, AVX2 or less.
#pragma once

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "volume.h"

namespace cad {

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t Whole __attribute__((vector_size(4 * kLanes)));

template <> CAD_HD Lanes every<Lanes>(float value) { return Lanes{} + value; }
template <> CAD_HD Lanes power_of_two<Lanes>(Lanes shifted) { return (Lanes)(((Whole)shifted << 23) + 0x3f800000); }
template <> CAD_HD Whole whole<Lanes, Whole>(Lanes x) { return __builtin_convertvector(x, Whole); }
template <> CAD_HD Lanes real<Lanes, Whole>(Whole x) { return __builtin_convertvector(x, Lanes); }
template <> CAD_HD Lanes rounded<Lanes>(Lanes x) {
#ifdef __AVX512F__
  asm("" : "+v"(x));
#else
  for (int i = 0; i < kLanes; ++i) asm("" : "+m"(x[i]));
#endif
  return x;
}

#ifdef __AVX512F__
// As the definitions of volume.h, of which the compiler would make two instructions and more.
template <> CAD_HD Lanes larger<Lanes>(Lanes a, Lanes b) { return (Lanes)_mm512_max_ps((__m512)a, (__m512)b); }
template <> CAD_HD Lanes smaller<Lanes>(Lanes a, Lanes b) { return (Lanes)_mm512_min_ps((__m512)a, (__m512)b); }
template <> CAD_HD Lanes scaled<Lanes>(Lanes x, Lanes shifted) {
  return (Lanes)_mm512_scalef_ps((__m512)x, (__m512)(shifted - kShift));
}
#endif
template <> CAD_HD Lanes minus_absolute<Lanes>(Lanes x) { return (Lanes)((Whole)x | (int32_t)0x80000000); }

template <> CAD_HD Lanes reciprocal<Lanes>(Lanes x) {
#ifdef __AVX512F__
  Lanes rough = __builtin_ia32_rcp14ps512_mask(x, Lanes{}, 0xffff);  // error 2^-14; one step of Newton's squares it
  return rough + rough * (1.f - x * rough);
#else
  return 1.f / x;
#endif
}

// Four vectors: chains that do not wait for each other hide the latency of the activations.
constexpr int kQuad = 4;
struct Quad {
  Lanes v[kQuad];
};
struct QuadMask {
  Whole v[kQuad];
};

#define CAD_EACH(result, expression)                      \
  result found;                                           \
  _Pragma("GCC unroll 4") for (int i = 0; i < kQuad; ++i) found.v[i] = expression; \
  return found
#define CAD_OPERATOR(result, op)                                                         \
  CAD_HD result operator op(Quad a, Quad b) { CAD_EACH(result, a.v[i] op b.v[i]); }      \
  CAD_HD result operator op(Quad a, float b) { CAD_EACH(result, a.v[i] op b); }          \
  CAD_HD result operator op(float a, Quad b) { CAD_EACH(result, a op b.v[i]); }
CAD_OPERATOR(Quad, +)
CAD_OPERATOR(Quad, -)
CAD_OPERATOR(Quad, *)
CAD_OPERATOR(QuadMask, <)
CAD_OPERATOR(QuadMask, >)
#undef CAD_OPERATOR
CAD_HD Quad operator-(Quad a) { CAD_EACH(Quad, -a.v[i]); }
CAD_HD Quad select(QuadMask condition, Quad yes, Quad no) { CAD_EACH(Quad, condition.v[i] ? yes.v[i] : no.v[i]); }
template <> CAD_HD Quad every<Quad>(float value) { CAD_EACH(Quad, every<Lanes>(value)); }
template <> CAD_HD Quad power_of_two<Quad>(Quad x) { CAD_EACH(Quad, power_of_two(x.v[i])); }
template <> CAD_HD Quad reciprocal<Quad>(Quad x) { CAD_EACH(Quad, reciprocal(x.v[i])); }
template <> CAD_HD Quad larger<Quad>(Quad a, Quad b) { CAD_EACH(Quad, larger(a.v[i], b.v[i])); }
template <> CAD_HD Quad smaller<Quad>(Quad a, Quad b) { CAD_EACH(Quad, smaller(a.v[i], b.v[i])); }
template <> CAD_HD Quad scaled<Quad>(Quad a, Quad b) { CAD_EACH(Quad, scaled(a.v[i], b.v[i])); }
template <> CAD_HD Quad minus_absolute<Quad>(Quad a) { CAD_EACH(Quad, minus_absolute(a.v[i])); }
#undef CAD_EACH

// Call visit(v, x) for `count` vectors: x is a Quad where four are left, else Lanes.
template <class Visit> CAD_HD void for_vectors(int count, Visit visit) {
  int v = 0;
  for (; v + kQuad <= count; v += kQuad) visit(v, Quad{});
  for (; v < count; ++v) visit(v, Lanes{});
}

CAD_HD void read(const Lanes* from, Lanes& x) { x = *from; }
CAD_HD void read(const Lanes* from, Quad& x) {
#pragma GCC unroll 4
  for (int i = 0; i < kQuad; ++i) x.v[i] = from[i];
}
CAD_HD void write(Lanes* to, Lanes x) { *to = x; }
CAD_HD void write(Lanes* to, Quad x) {
#pragma GCC unroll 4
  for (int i = 0; i < kQuad; ++i) to[i] = x.v[i];
}
CAD_HD Lanes load(const float* from) {
  Lanes x;
  memcpy(&x, from, sizeof x);
  return x;
}

CAD_HD void store(float* to, Lanes x) { memcpy(to, &x, sizeof x); }

// from[index] of each lane.
CAD_HD Lanes gather(const float* from, Whole index) {
#ifdef __AVX512F__
  return (Lanes)_mm512_i32gather_ps((__m512i)index, from, 4);
#else
  Lanes x;
  for (int i = 0; i < kLanes; ++i) x[i] = from[index[i]];
  return x;
#endif
}

// The number of each lane.
const Whole kLane = [] {
  Whole found;
  for (int i = 0; i < kLanes; ++i) found[i] = i;
  return found;
}();

CAD_HD float total(Lanes x) {
  float sum = 0.f;
  for (int i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

// One of log2(kLanes) rounds of the transposition: rows `distance` apart exchange their off-diagonal blocks.
template <int distance> CAD_HD void exchange(Lanes (&rows)[kLanes]) {
  Whole low, high;
  for (int i = 0; i < kLanes; ++i) {
    low[i] = i & distance ? kLanes + i - distance : i;
    high[i] = i & distance ? kLanes + i : i + distance;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & distance) continue;
    Lanes a = rows[i], b = rows[i + distance];
    rows[i] = __builtin_shuffle(a, b, low);
    rows[i + distance] = __builtin_shuffle(a, b, high);
  }
}

CAD_HD void transpose(Lanes (&rows)[kLanes]) {
  if constexpr (kLanes == 16) exchange<8>(rows);
  exchange<4>(rows);
  exchange<2>(rows);
  exchange<1>(rows);
}

}  // namespace cad
