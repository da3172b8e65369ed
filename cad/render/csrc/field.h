// What a tile of kLanes rays meets: plane features at its samples, and the decoder's outputs there.
#pragma once

#include <memory>

#include "lanes.h"

namespace cad {

// The sizes of one call; mirrored by `_Sizes` in cad/render/fused.py.
struct Sizes {
  int64_t batch, rays, samples, channels, height, width, hidden, outputs;
  float half_side, far;

  int64_t padded() const { return (channels + kLanes - 1) / kLanes * kLanes; }  // channels of a packed texel
  int64_t packed() const { return 3 * height * width * padded(); }              // floats of one volume's packed planes
};

struct Decoder {
  const float *hidden_weight, *hidden_bias, *out_weight, *out_bias;  // [D, C], [D], [1 + F, D], [1 + F]
};

struct Rays {
  const float *origins, *directions, *depths, *leave;  // [B, R, 3], [B, R, 3], [B, R, S] ascending, [B, R]
};

// kLanes rays of one volume; those behind `count` repeat the first one and take no part.
struct Tile {
  int64_t ray[kLanes];  // within the whole batch
  int count;
  Whole alive;
  Lanes origin[3], direction[3], leave;
};

inline Tile tile(const Rays& rays, const int64_t* chosen, int count) {
  Tile t;
  t.count = count;
  for (int lane = 0; lane < kLanes; ++lane) {
    int64_t ray = t.ray[lane] = chosen[lane < count ? lane : 0];
    t.alive[lane] = lane < count ? -1 : 0;
    for (int axis = 0; axis < 3; ++axis) {
      t.origin[axis][lane] = rays.origins[ray * 3 + axis];
      t.direction[axis][lane] = rays.directions[ray * 3 + axis];
    }
    t.leave[lane] = rays.leave[ray];
  }
  return t;
}

// One float per ray, from rows `stride` apart.
inline Lanes gather(const Tile& t, const float* from, int64_t stride) {
  Lanes x;
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = from[t.ray[lane] * stride];
  return x;
}

inline void scatter(const Tile& t, float* to, int64_t stride, Lanes x) {
  for (int lane = 0; lane < t.count; ++lane) to[t.ray[lane] * stride] = x[lane];
}

// The twelve texels around one sample of each ray: offsets into the packed planes, and shares.
struct Corners {
  alignas(64) int32_t offset[12][kLanes];
  alignas(64) float share[12][kLanes];
  Texel<Lanes, Whole> x[3], y[3];  // along the width and the height of each plane
};

constexpr int kAxes[3][2] = {{0, 1}, {0, 2}, {1, 2}};  // of planes (x, y), (x, z), (y, z); the first along the width

inline void find_corners(const Sizes& sizes, const Lanes (&point)[3], Corners& corners) {
  const int width = sizes.width, height = sizes.height, padded = sizes.padded();
  for (int plane = 0; plane < 3; ++plane) {
    auto x = corners.x[plane] = texel<Lanes, Whole>(point[kAxes[plane][0]], width, sizes.half_side);
    auto y = corners.y[plane] = texel<Lanes, Whole>(point[kAxes[plane][1]], height, sizes.half_side);
    Whole low = (y.low + plane * height) * width, high = (y.high + plane * height) * width;
    Whole offsets[4] = {low + x.low, low + x.high, high + x.low, high + x.high};
    Lanes shares[4] = {(1.f - y.share) * (1.f - x.share), (1.f - y.share) * x.share, y.share * (1.f - x.share),
                       y.share * x.share};
    for (int corner = 0; corner < 4; ++corner) {
      Whole offset = offsets[corner] * padded;
      memcpy(corners.offset[plane * 4 + corner], &offset, sizeof offset);
      memcpy(corners.share[plane * 4 + corner], &shares[corner], sizeof shares[corner]);
    }
  }
}

// Everything that is known of up to kSteps samples of a tile; blocks are [rows][kSteps].
struct Block {
  explicit Block(const Sizes& s)
      : store(new Lanes[(s.padded() + 2 * s.hidden + s.outputs) * kSteps]),
        features(store.get()),
        hidden(features + s.padded() * kSteps),
        slope(hidden + s.hidden * kSteps),
        out(slope + s.hidden * kSteps),
        rows(new Lanes[s.padded()]) {}

  std::unique_ptr<Lanes[]> store;
  Lanes *features, *hidden, *slope, *out;  // slope: derivative of the hidden activation; out: before its activation
  std::unique_ptr<Lanes[]> rows;           // [kLanes][padded]: features of one step, ray by ray
  Lanes distance[kSteps + 1];              // along the ray, and that of the sample behind the block
  Lanes point[kSteps][3];
  Whole inside[kSteps];
  Corners corners[kSteps];
  int steps;
  bool empty;  // no sample of the block lies in the box
};

// Place the samples from `first` on; returns whether any of them lies in the box.
inline bool place(const Sizes& sizes, const Rays& rays, const Tile& t, int64_t first, Block& block) {
  block.steps = sizes.samples - first < kSteps ? sizes.samples - first : kSteps;
  Whole any = {};
  for (int v = 0; v < block.steps; ++v) {
    block.distance[v] = gather(t, rays.depths + first + v, sizes.samples);
    Lanes(&p)[3] = block.point[v];
    for (int axis = 0; axis < 3; ++axis)
      p[axis] = t.origin[axis] + rounded(block.distance[v] * t.direction[axis]);  // as PyTorch rounds it
    block.inside[v] = t.alive & ~outside(p[0], p[1], p[2], sizes.half_side);
    any |= block.inside[v];
  }
  bool last = first + block.steps == sizes.samples;
  block.distance[block.steps] = last ? t.leave : gather(t, rays.depths + first + block.steps, sizes.samples);
  block.empty = true;
  for (int lane = 0; lane < kLanes; ++lane) block.empty &= any[lane] == 0;
  return !block.empty;
}

inline void read_planes(const Sizes& sizes, const float* planes, Block& block) {
  const int padded = sizes.padded();
  float* rows = reinterpret_cast<float*>(block.rows.get());
  for (int v = 0; v < block.steps; ++v) {
    Corners& corners = block.corners[v];
    find_corners(sizes, block.point[v], corners);
    for (int lane = 0; lane < kLanes; ++lane) {
      float* row = rows + lane * padded;
      if (!block.inside[v][lane]) {
        memset(row, 0, padded * sizeof(float));
        continue;
      }
      for (int c = 0; c < padded; c += kLanes) {
        Lanes sum = {};
#pragma GCC unroll 12
        for (int q = 0; q < 12; ++q) sum += load(planes + corners.offset[q][lane] + c) * corners.share[q][lane];
        cad::store(row + c, sum);
      }
    }
    for (int c = 0; c < padded; c += kLanes) {
      Lanes square[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) square[lane] = load(rows + lane * padded + c);
      transpose(square);
      for (int i = 0; i < kLanes; ++i) block.features[(c + i) * kSteps + v] = square[i];
    }
  }
}

// Decode the block's features: rows 0 (the density) to `outputs` of `out`, before their activations.
template <bool with_slope> void decode(const Sizes& sizes, const Decoder& decoder, int outputs, Block& block) {
  multiply(decoder.hidden_weight, 0, sizes.hidden, sizes.channels, block.features, block.steps,
           [&](int j, int v, auto sum) {
             auto raw = sum + decoder.hidden_bias[j], tail = raw;
             write(block.hidden + j * kSteps + v, softplus(raw, tail));
             if (with_slope) write(block.slope + j * kSteps + v, logistic(raw, tail));
           });
  multiply(decoder.out_weight, 0, outputs, sizes.hidden, block.hidden, block.steps,
           [&](int k, int v, auto sum) { write(block.out + k * kSteps + v, sum + decoder.out_bias[k]); });
}

inline Lanes density(const Block& block, int v, Lanes& slope) {
  Lanes tail, raw = block.out[v] - kDensityShift, sigma = softplus(raw, tail);
  slope = logistic(raw, tail);
  return block.inside[v] ? sigma : every<Lanes>(0.f);
}

}  // namespace cad
