// Parts of the backward pass: the decoder's gradient as products of what a block's samples have left in shared memory,
// the planes' by atomic additions, and what the loss says of a ray.
#pragma once

#include "samples.h"

namespace cad {

constexpr int kRows = 2, kWarpRays = 16;  // rows of a quad and rays of a warp in the backward pass

// A row's length such that the lanes of a warp, reading along a column or a row, meet no bank of memory twice.
CAD_HD constexpr int stride(int columns) { return columns % 16 == 8 ? columns : columns + 8; }
constexpr int kColumnStride = stride(kChannels > kFeatures ? kChannels : kFeatures);

// sum[unit, column] += over rows [first, last) of units[row, unit] columns[row, column]. What the lane reads is shown to
// left_seen(row, units): units g and g + 8 of the row, then of the fourth row behind it; and to right_seen(tile, sum):
// column g of the tile, summed over these two rows. Matrix products round towards zero: what they add up over these rows
// alone is added to `sum` as usual, or thousands of small losses would add up too.
template <int kTiles, class LeftSeen, class RightSeen>
__device__ __forceinline__ void add_products(float (&sum)[kTiles][4], const float* units, int unit_stride,
                                             const float* columns, int first, int last, LeftSeen left_seen,
                                             RightSeen right_seen) {
  units += place() * unit_stride + group();
  columns += place() * kColumnStride + group();
  float own[kTiles][4] = {};
#pragma unroll 2
  for (int r = first; r < last; r += 8) {
    const float *upper = units + r * unit_stride, *lower = upper + 4 * unit_stride;
    const float found[4] = {upper[0], upper[8], lower[0], lower[8]};
    Factor<kExact, 4> left;
#pragma unroll
    for (int i = 0; i < 4; ++i) left.set(i, found[i]);
    left_seen(r + place(), found);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const float *column = columns + r * kColumnStride + t * 8, one = column[0], other = column[4 * kColumnStride];
      multiply_add(own[t], left, right_factor<kExact>(one, other));
      right_seen(t, one + other);
    }
  }
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[t][e] += own[t][e];
}

// The derivative of the hidden activation by its value: softplus' is 1 - e^-softplus.
__device__ __forceinline__ float hidden_slope(float activation) {
  if constexpr (kExact) return absorbed(activation);
  return 1.f - __expf(-activation);
}

__device__ __forceinline__ void add(float* to, float4 x) {
#if !defined(__CUDACC__) || __CUDA_ARCH__ >= 900
  atomicAdd(reinterpret_cast<float4*>(to), x);
#else
  atomicAdd(to, x.x);
  atomicAdd(to + 1, x.y);
  atomicAdd(to + 2, x.z);
  atomicAdd(to + 3, x.w);
#endif
}

// Add the gradient of the features to that of the planes. `grad` holds what multiply_add leaves; with kPoint also the
// lane's share of the gradient of the rows' points.
template <bool kPoint>
__device__ __forceinline__ void scatter(const Sizes& s, const Plane* planes, float* to, const float (&point)[3],
                                        bool inside, const float (&grad)[kInTiles][4], float (&point_grad)[3][kRows]) {
  to += channel(place(), 0);
  planes += channel(place(), 0);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float at[3] = {of_quad(point[0], r), of_quad(point[1], r), of_quad(point[2], r)};
    const bool counts = of_quad(int(inside), r);
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) point_grad[axis][r] = 0.f;
    if (!counts) continue;
#pragma unroll
    for (int plane = 0; plane < 3; ++plane) {
      const Corners corners(s, at, plane);
      float dot[4] = {};
#pragma unroll
      for (int corner = 0; corner < 4; ++corner)
#pragma unroll
        for (int v = 0; v < kShare / kVector; ++v) {
          const int offset = corners.offset[corner] + v * kVector * kQuad;
          float texel[kVector];
          if constexpr (kPoint) read(planes + offset, texel);
#pragma unroll
          for (int c = 0; c < kVector; c += 4) {
            const int i = (v * kVector + c) / 2;
            const float g[4] = {grad[i][2 * r], grad[i][2 * r + 1], grad[i + 1][2 * r], grad[i + 1][2 * r + 1]};
            const float share = corners.share[corner];
            add(to + offset + c, make_float4(share * g[0], share * g[1], share * g[2], share * g[3]));
            if constexpr (kPoint)
#pragma unroll
              for (int e = 0; e < 4; ++e) dot[corner] += g[e] * texel[c + e];
          }
        }
      if constexpr (kPoint) {
        const auto &x = corners.x, &y = corners.y;
        point_grad[across(plane)][r] += x.slope * ((dot[1] - dot[0]) * (1.f - y.share) + (dot[3] - dot[2]) * y.share);
        point_grad[down(plane)][r] += y.slope * ((dot[2] - dot[0]) * (1.f - x.share) + (dot[3] - dot[1]) * x.share);
      }
    }
  }
}

// What the loss says of one ray: d loss / d weight of a sample = weight + depth * (distance - far) + its own part +
// features . radiance.
struct RayLoss {
  float weight, depth, rest;  // rest: what samples not yet visited add to sum(weight * d loss / d weight)

  __device__ __forceinline__ RayLoss(const Sizes& s, const Rendered& rendered, const Gradients& grads, int64_t ray) {
    const int features = s.outputs - 1;
    const float covered = rendered.opacity[ray], passed = 1.f - covered;
    weight = grads.opacity[ray];
    depth = grads.depth[ray];
    rest = depth * (rendered.depth[ray] - s.far) + weight * covered;
    for (int k = 0; k < features; ++k) {
      const float g = grads.features[ray * features + k], light = k < kColors ? passed : 0.f;
      rest += g * (rendered.features[ray * features + k] - light);
      if (k < kColors) weight -= g, rest -= g * covered;
    }
    if (grads.weights)
      for (int i = 0; i < s.samples; ++i)
        rest += grads.weights[ray * s.samples + i] * rendered.weights[ray * s.samples + i];
  }
};

}  // namespace cad
