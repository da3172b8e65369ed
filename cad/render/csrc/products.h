// Products of small matrices on a CPU. A row is a sample, its columns are padded to whole vectors of kLanes floats.
#pragma once

#include <memory>

#include "lanes.h"

namespace cad {

using Memory = std::unique_ptr<Lanes[]>;

CAD_HD int padded(int64_t columns) { return (columns + kLanes - 1) / kLanes * kLanes; }

// Sums of a tile of rows by one or two vectors: so many stay in registers, of which there are 32 (16), and are enough
// that none waits for another. Tiles two vectors wide read least.
constexpr int kSums = kLanes == 16 ? 16 : 8;

// A number for all lanes, in a register: the compiler would read it from memory again for each product.
CAD_HD Lanes spread(float x) {
  Lanes found = every<Lanes>(x);
#if defined(__AVX512F__)
  asm("" : "+v"(found));
#elif defined(__AVX__)
  asm("" : "+x"(found));
#endif
  return found;
}

// A right factor [inner][columns], with what is added to each row of a product, or null.
struct Matrix {
  const float *values, *bias;
  int inner, columns;  // columns: padded
};

template <int R, int V>
CAD_HD void multiply_tile(const Matrix& m, const float* in, int stride, float* out, int column) {
  Lanes sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sum[r][v] = m.bias ? load(m.bias + column + v * kLanes) : Lanes{};
  for (int k = 0; k < m.inner; ++k) {
    Lanes factor[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) factor[v] = load(m.values + k * m.columns + column + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      Lanes x = spread(in[r * stride + k]);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[r][v] += x * factor[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store(out + r * m.columns + column + v * kLanes, sum[r][v]);
}

template <int V> void multiply_columns(const Matrix& m, const float* in, int stride, int rows, float* out, int column) {
  constexpr int R = kSums / V;
  int r = 0;
  for (; r + R <= rows; r += R) multiply_tile<R, V>(m, in + r * stride, stride, out + r * m.columns, column);
  for (; r < rows; r += 4) multiply_tile<4, V>(m, in + r * stride, stride, out + r * m.columns, column);
}

// out [rows][columns] = in [rows][inner, `stride` apart] times m, plus its bias; rows: a multiple of 4.
inline void multiply(const Matrix& m, const float* in, int stride, int rows, float* out) {
  int column = 0;
  for (; column + 2 * kLanes <= m.columns; column += 2 * kLanes) multiply_columns<2>(m, in, stride, rows, out, column);
  if (column < m.columns) multiply_columns<1>(m, in, stride, rows, out, column);
}

template <int K, int V>
CAD_HD void outer_tile(const float* a, int stride, const float* b, int columns, int rows, float* table) {
  Lanes sum[K][V];
#pragma GCC unroll 16
  for (int k = 0; k < K; ++k)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sum[k][v] = load(table + k * columns + v * kLanes);
  for (int r = 0; r < rows; ++r) {
    Lanes factor[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) factor[v] = load(b + r * columns + v * kLanes);
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) {
      Lanes x = spread(a[r * stride + k]);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[k][v] += x * factor[v];
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < K; ++k)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store(table + k * columns + v * kLanes, sum[k][v]);
}

template <int V>
void outer_columns(const float* a, int count, int stride, const float* b, int columns, int rows, float* table) {
  constexpr int K = kSums / V;
  int k = 0;
  for (; k + K <= count; k += K) outer_tile<K, V>(a + k, stride, b, columns, rows, table + k * columns);
  for (; k + 4 <= count; k += 4) outer_tile<4, V>(a + k, stride, b, columns, rows, table + k * columns);
  for (; k < count; ++k) outer_tile<1, V>(a + k, stride, b, columns, rows, table + k * columns);
}

// table[k][j] += sum over the rows of a[row][k] b[row][j], k < count; b has `columns`, rows of a lie `stride` apart.
inline void outer(const float* a, int count, int stride, const float* b, int columns, int rows, float* table) {
  int column = 0;
  for (; column + 2 * kLanes <= columns; column += 2 * kLanes)
    outer_columns<2>(a, count, stride, b + column, columns, rows, table + column);
  if (column < columns) outer_columns<1>(a, count, stride, b + column, columns, rows, table + column);
}

// sum[j] += sum over the rows of a[row][j].
inline void add_rows(const float* a, int columns, int rows, float* sum) {
  for (int c = 0; c < columns; c += kLanes) {
    Lanes found = load(sum + c);
    for (int r = 0; r < rows; ++r) found += load(a + r * columns + c);
    store(sum + c, found);
  }
}

// Scalar products of kLanes rows: of a's with b, or with b's rows if these are `step` > 0 floats apart.
inline Lanes products(const float* a, int columns, const float* b, int step) {
  Lanes part[kLanes];
  for (int r = 0; r < kLanes; ++r) {
    Lanes sum = {};
    for (int c = 0; c < columns; c += kLanes) sum += load(a + r * columns + c) * load(b + r * step + c);
    part[r] = sum;
  }
  transpose(part);
#pragma GCC unroll 16
  for (int half = kLanes / 2; half; half /= 2)
#pragma GCC unroll 16
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  return part[0];
}

}  // namespace cad
