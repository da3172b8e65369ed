// A warp's rays and what their samples meet: one lane has one ray (or two have the same), all four lanes of a quad share
// the work on the samples of its rays.
#pragma once

#include <type_traits>

#include "layers.h"

namespace cad {

constexpr float kOpaque = 20.f;  // optical thickness behind which a sample's share is below 2e-9: it is not looked at

// Row i of a quad is a row g + 8 (i % 2) of the i / 2-th row tile; it belongs to the lane i of the quad.
__device__ __forceinline__ int row(int i) { return i / 2 * 16 + i % 2 * 8 + group(); }

struct Ray {
  int64_t index;  // within the whole batch
  bool exists;    // rows behind the last ray repeat it and take no part
  float origin[3], direction[3], leave;
};

__device__ __forceinline__ Ray ray_at(const Rays& rays, int64_t index, int64_t end) {
  Ray ray;
  ray.exists = index < end;
  ray.index = ray.exists ? index : end - 1;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    ray.origin[axis] = rays.origins[ray.index * 3 + axis];
    ray.direction[axis] = rays.directions[ray.index * 3 + axis];
  }
  ray.leave = rays.leave[ray.index];
  return ray;
}

// One sample of a ray after the other.
struct March {
  const float* depths;
  float distance, next, point[3];

  __device__ __forceinline__ March(const Sizes& s, const Rays& rays, const Ray& ray)
      : depths(rays.depths + ray.index * s.samples), next(depths[0]) {}

  // Go to sample i; returns whether it lies in the box.
  __device__ __forceinline__ bool step(const Sizes& s, const Ray& ray, int i) {
    distance = next;
    next = i + 1 < s.samples ? depths[i + 1] : ray.leave;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis)
      point[axis] = ray.origin[axis] + rounded(distance * ray.direction[axis]);  // as PyTorch rounds it
    return !outside(point[0], point[1], point[2], s.half_side);
  }
};

// Where samples are looked at: everywhere in the box, but for those that hardly any light reaches.
struct Everywhere {
  static constexpr float kEnd = kOpaque;  // of a ray, in optical thickness

  __device__ __forceinline__ bool occupied(const Sizes&, int, const float (&)[3]) const { return true; }
};

// For inference: where the volumes' occupancy grids have a bit.
struct Grid {
  static constexpr float kEnd = kSpent;

  const int32_t* bits;  // [B, words]
  int words, side, shift;

  __device__ __forceinline__ bool occupied(const Sizes& s, int volume, const float (&point)[3]) const {
    const int at = place_in_grid<float, int>(point[0], point[1], point[2], int(s.width), shift, side, s.half_side);
    return cad::occupied<int>(bits[volume * words + (at >> 5)], at);
  }
};

// The axes of planes (x, y), (x, z), (y, z); the first along the width.
__device__ __forceinline__ constexpr int across(int plane) { return plane == 2 ? 1 : 0; }
__device__ __forceinline__ constexpr int down(int plane) { return plane == 0 ? 1 : 2; }

// The four texels of one plane around a point: offsets into the packed planes, and shares.
struct Corners {
  int offset[4];
  float share[4];
  Texel<float, int> x, y;

  __device__ __forceinline__ Corners(const Sizes& s, const float (&point)[3], int plane) {
    const int width = s.width, height = s.height;
    x = texel<float, int>(point[across(plane)], width, s.half_side);
    y = texel<float, int>(point[down(plane)], height, s.half_side);
    int low = (y.low + plane * height) * width, high = (y.high + plane * height) * width;
    int texels[4] = {low + x.low, low + x.high, high + x.low, high + x.high};
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      offset[corner] = texels[corner] * kChannels;
      share[corner] = (corner / 2 ? y.share : 1.f - y.share) * (corner % 2 ? x.share : 1.f - x.share);
    }
  }
};

__device__ __forceinline__ float number(float x) { return x; }
__device__ __forceinline__ float number(Bfloat x) { return __uint_as_float(uint32_t(x.bits) << 16); }
__device__ __forceinline__ float number(Half x) {
#ifdef __CUDACC__
  float found;
  asm("cvt.f32.f16 %0, %1;" : "=f"(found) : "h"(x.bits));
  return found;
#else
  return emulated::number(x.bits);
#endif
}

// kVector numbers that lie side by side, in one access.
__device__ __forceinline__ void read(const Plane* from, float (&to)[kVector]) {
  struct alignas(kVector * sizeof(Plane)) {
    Plane number[kVector];
  } found;
  using Vector = std::conditional_t<sizeof(found) == 16, uint4, uint2>;
  Vector vector = *reinterpret_cast<const Vector*>(from);
  memcpy(&found, &vector, sizeof found);
#pragma unroll
  for (int i = 0; i < kVector; ++i) to[i] = number(found.number[i]);
}

// Sums of the planes at the points of a quad's rows (each known to its ray's lane): the lane's share of the channels.
// Points outside the box read its border, and what they give is not used.
template <int kRows>
__device__ __forceinline__ void read_planes(const Sizes& s, const Plane* planes, const float (&point)[3],
                                            float (&feature)[kRows][kShare]) {
  const Plane* own = planes + channel(place(), 0);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const float at[3] = {of_quad(point[0], i), of_quad(point[1], i), of_quad(point[2], i)};
#pragma unroll
    for (int c = 0; c < kShare; ++c) feature[i][c] = 0.f;
#pragma unroll
    for (int plane = 0; plane < 3; ++plane) {
      const Corners corners(s, at, plane);
#pragma unroll
      for (int v = 0; v < kShare / kVector; ++v)
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          float texel[kVector];
          read(own + corners.offset[corner] + v * kVector * kQuad, texel);
#pragma unroll
          for (int c = 0; c < kVector; ++c) feature[i][v * kVector + c] += corners.share[corner] * texel[c];
        }
    }
  }
}

}  // namespace cad
