// Vectors of rays on a CPU: one lane is one ray. GCC's vector types; the compiler maps them to AVX-512, AVX2 or less.
#pragma once

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

template <> CAD_HD Lanes reciprocal<Lanes>(Lanes x) {
#ifdef __AVX512F__
  Lanes rough = __builtin_ia32_rcp14ps512_mask(x, Lanes{}, 0xffff);  // error 2^-14; one step of Newton's squares it
  return rough + rough * (1.f - x * rough);
#else
  return 1.f / x;
#endif
}

// Four vectors of consecutive steps: chains that do not wait for each other hide the latency of the activations.
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
#undef CAD_EACH

// Call visit(v, x) for the steps of a row: x is a Quad where four are left, else Lanes.
template <class Visit> CAD_HD void for_steps(int steps, Visit visit) {
  int v = 0;
  for (; v + kQuad <= steps; v += kQuad) visit(v, Quad{});
  for (; v < steps; ++v) visit(v, Lanes{});
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
CAD_HD void spread(Lanes one, Lanes& x) { x = one; }
CAD_HD void spread(Lanes one, Quad& x) {
#pragma GCC unroll 4
  for (int i = 0; i < kQuad; ++i) x.v[i] = one;
}
CAD_HD Lanes add_steps(Lanes x) { return x; }
CAD_HD Lanes add_steps(Quad x) { return (x.v[0] + x.v[1]) + (x.v[2] + x.v[3]); }

CAD_HD Lanes load(const float* from) {
  Lanes x;
  memcpy(&x, from, sizeof x);
  return x;
}

CAD_HD void store(float* to, Lanes x) { memcpy(to, &x, sizeof x); }

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

// Steps along the rays that are decoded together, and the distance between rows of a [channels][kSteps] block.
constexpr int kSteps = 16;

template <int J, class Steps, class Done>
CAD_HD void multiply_tile(const float* weight, int inner, const Lanes* in, int j, int v, Done& done) {
  constexpr int V = sizeof(Steps) / sizeof(Lanes);
  Lanes sum[J][V] = {};
  for (int c = 0; c < inner; ++c) {
    Lanes x[V];
#pragma GCC unroll 4
    for (int b = 0; b < V; ++b) x[b] = in[c * kSteps + v + b];
#pragma GCC unroll 4
    for (int a = 0; a < J; ++a)
#pragma GCC unroll 4
      for (int b = 0; b < V; ++b) sum[a][b] += x[b] * weight[(j + a) * inner + c];
  }
#pragma GCC unroll 4
  for (int a = 0; a < J; ++a) {
    Steps row;
    read(sum[a], row);
    done(j + a, v, row);
  }
}

template <int J, class Done>
inline void multiply_rows(const float* weight, int inner, const Lanes* in, int steps, int j, Done& done) {
  for_steps(steps, [&](int v, auto kind) { multiply_tile<J, decltype(kind)>(weight, inner, in, j, v, done); });
}

// done(j, v, sum over c of weight[j][c] in[c][v]) for the rows from `first` to `last` and all steps, four at a time.
template <class Done>
inline void multiply(const float* weight, int first, int last, int inner, const Lanes* in, int steps, Done done) {
  int j = first;
  for (; j + 4 <= last; j += 4) multiply_rows<4>(weight, inner, in, steps, j, done);
  for (; j < last; ++j) multiply_rows<1>(weight, inner, in, steps, j, done);
}

template <int K, int J>
CAD_HD void outer_tile(const Lanes* a, const Lanes* b, int columns, int steps, int k, int j, Lanes* table) {
  Lanes sum[K][J] = {};
  for (int v = 0; v < steps; ++v) {
    Lanes x[J];
#pragma GCC unroll 4
    for (int q = 0; q < J; ++q) x[q] = b[(j + q) * kSteps + v];
#pragma GCC unroll 4
    for (int p = 0; p < K; ++p)
#pragma GCC unroll 4
      for (int q = 0; q < J; ++q) sum[p][q] += a[(k + p) * kSteps + v] * x[q];
  }
#pragma GCC unroll 4
  for (int p = 0; p < K; ++p)
#pragma GCC unroll 4
    for (int q = 0; q < J; ++q) table[(k + p) * columns + j + q] += sum[p][q];
}

template <int K> inline void outer_rows(const Lanes* a, const Lanes* b, int columns, int steps, int k, Lanes* table) {
  int j = 0;
  for (; j + 4 <= columns; j += 4) outer_tile<K, 4>(a, b, columns, steps, k, j, table);
  for (; j < columns; ++j) outer_tile<K, 1>(a, b, columns, steps, k, j, table);
}

// table[k][j] += sum over v of a[k][v] b[j][v], lane by lane.
inline void outer(const Lanes* a, int rows, const Lanes* b, int columns, int steps, Lanes* table) {
  int k = 0;
  for (; k + 4 <= rows; k += 4) outer_rows<4>(a, b, columns, steps, k, table);
  for (; k < rows; ++k) outer_rows<1>(a, b, columns, steps, k, table);
}

// bias[k] += sum over v of a[k][v], lane by lane.
inline void add_up(const Lanes* a, int rows, int steps, Lanes* bias) {
  for (int k = 0; k < rows; ++k)
    for (int v = 0; v < steps; ++v) bias[k] += a[k * kSteps + v];
}

}  // namespace cad
