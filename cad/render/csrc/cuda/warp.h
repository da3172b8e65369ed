// What a warp does together on NVIDIA GPUs of compute capability 8.0 or newer: votes, exchanges among the four lanes of
// a quad, matrix products of tf32 numbers. Another compiler than nvcc finds an emulator: tests run the kernels on a CPU.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "emulator.h"
#endif

#include "scalar.h"

namespace cad {

constexpr int kWarp = 32, kQuad = 4;
constexpr unsigned kEveryLane = 0xffffffffu;

__device__ __forceinline__ int lane() { return threadIdx.x % kWarp; }
__device__ __forceinline__ int warp() { return threadIdx.x / kWarp; }

// The block's shared memory.
__device__ __forceinline__ float* shared_memory() {
#ifdef __CUDACC__
  extern __shared__ float4 memory[];
  return reinterpret_cast<float*>(memory);
#else
  return emulated::shared_memory();
#endif
}

// Matrix products have m = 16 rows, n = 8 columns and k = 8 terms. Lane 4 g + q holds of the left factor [m, k] the
// terms q and q + 4 of the rows g and g + 8, of the right factor [k, n] the terms q and q + 4 of column g, and of the sum
// [m, n] the columns 2 q and 2 q + 1 of the rows g and g + 8. As a sum does not depend on the order of its terms, what is
// called term q and term q + 4 here are numbers that lie side by side: a sum is the next product's left factor as it is.
__device__ __forceinline__ int group() { return lane() / kQuad; }
__device__ __forceinline__ int place() { return lane() % kQuad; }

__device__ __forceinline__ bool any_lane(bool x) { return __any_sync(kEveryLane, x); }

// What lane `from` of the own quad holds.
template <class T> __device__ __forceinline__ T of_quad(T x, int from) { return __shfl_sync(kEveryLane, x, from, kQuad); }

__device__ __forceinline__ float exchanged(float x, int distance) { return __shfl_xor_sync(kEveryLane, x, distance); }

// Sums over a quad of one number per row; each lane gets that of the row place() % kRows.
template <int kRows> __device__ __forceinline__ float quad_sum(const float (&x)[kRows]) {
  static_assert(kRows == 2 || kRows == 4);
  bool odd = place() % 2, late = place() / 2;
  if constexpr (kRows == 2) {
    float sum = (odd ? x[1] : x[0]) + exchanged(odd ? x[0] : x[1], 1);
    return sum + exchanged(sum, 2);
  } else {
    float first = (late ? x[2] : x[0]) + exchanged(late ? x[0] : x[2], 2);
    float second = (late ? x[3] : x[1]) + exchanged(late ? x[1] : x[3], 2);
    return (odd ? second : first) + exchanged(odd ? first : second, 1);
  }
}

constexpr uint32_t kHighBits = 0xffffe000u;  // of a float: those that tf32 has

// The nearest tf32 number.
__device__ __forceinline__ uint32_t tf32(float x) {
#ifdef __CUDACC__
  uint32_t found;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(found) : "f"(x));
  return found;
#else
  return emulated::tf32(x);
#endif
}

// sum += left right, in tf32 with sums of float32.
__device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
#else
  emulated::multiply_add(sum, left, right);
#endif
}

// N numbers of a factor. Exact: as a sum of two tf32 numbers, of which all but the product of the small parts is
// multiplied, which errs by about 2^-21 of each product; else rounded to tf32, 2^-12.
template <bool kExact, int N> struct Factor {
  uint32_t high[N], low[N];

  __device__ __forceinline__ void set(int i, float x) {
    if constexpr (kExact) {
      high[i] = __float_as_uint(x) & kHighBits;
      low[i] = __float_as_uint(x - __uint_as_float(high[i])) & kHighBits;
    } else {
      high[i] = tf32(x);
    }
  }
};

template <bool kExact>
__device__ __forceinline__ void multiply_add(float (&sum)[4], const Factor<kExact, 4>& left,
                                             const Factor<kExact, 2>& right) {
  if constexpr (kExact) {
    multiply_add(sum, left.low, right.high);
    multiply_add(sum, left.high, right.low);
  }
  multiply_add(sum, left.high, right.high);
}

// A sum as the left factor of the next product.
template <bool kExact> __device__ __forceinline__ Factor<kExact, 4> left_factor(const float (&sum)[4]) {
  Factor<kExact, 4> left;
  left.set(0, sum[0]);  // row g, first of two neighbours
  left.set(1, sum[2]);  // row g + 8
  left.set(2, sum[1]);  // row g, second
  left.set(3, sum[3]);
  return left;
}

template <bool kExact> __device__ __forceinline__ Factor<kExact, 2> right_factor(float first, float second) {
  Factor<kExact, 2> right;
  right.set(0, first);
  right.set(1, second);
  return right;
}

}  // namespace cad
