// What a tile of kLanes rays meets: plane features at its samples, and what the decoder makes of them.
#pragma once

#include "call.h"
#include "products.h"

namespace cad {

using Sizes = CallSizes<kLanes>;

// The decoder as its kernels read it, columns padded: activations read no padding, gradients of padding are 0.
struct Layers {
  Layers(const Sizes& s, const Decoder& d)
      : channels(padded(s.channels)),
        units(padded(s.hidden)),
        features(padded(s.outputs - 1)) {
    const int64_t floats = (s.channels + s.outputs + 1) * units + s.hidden * (channels + features) + features;
    store.reset(new Lanes[floats / kLanes]());
    float* next = reinterpret_cast<float*>(store.get());
    auto room = [&](int64_t rows, int columns) {
      float* found = next;
      next += rows * columns;
      return found;
    };
    const int inputs = s.channels, hidden = s.hidden, outputs = s.outputs - 1;
    float *in = room(inputs, units), *in_bias = room(1, units), *in_back = room(hidden, channels);
    float *out = room(hidden, features), *out_bias = room(1, features), *out_back = room(outputs, units);
    float* first = room(1, units);
    for (int j = 0; j < hidden; ++j) {
      in_bias[j] = d.hidden_bias[j];
      first[j] = d.out_weight[j];
      for (int c = 0; c < inputs; ++c) in[c * units + j] = in_back[j * channels + c] = d.hidden_weight[j * inputs + c];
      for (int k = 0; k < outputs; ++k)
        out[j * features + k] = out_back[k * units + j] = d.out_weight[(k + 1) * hidden + j];
    }
    memcpy(out_bias, d.out_bias + 1, outputs * sizeof(float));
    to_hidden = {in, in_bias, inputs, units};
    to_radiance = {out, out_bias, hidden, features};
    from_radiance = {out_back, nullptr, outputs, units};
    from_hidden = {in_back, nullptr, hidden, channels};
    density = first;
    density_bias = d.out_bias[0] - kDensityShift;
  }

  int channels, units, features;  // padded
  Memory store;
  Matrix to_hidden, to_radiance, from_radiance, from_hidden;
  const float* density;  // weights of the density's output
  float density_bias;
};

// kLanes rays of one volume; those behind `count` repeat the first one and take no part.
struct Tile {
  int64_t ray[kLanes];  // within the whole batch
  int count;
  Whole alive;
  Lanes origin[3], direction[3], leave;
};

// origins, directions: [B, R, 3]; leave: [B, R].
inline Tile tile(const float* origins, const float* directions, const float* leave, const int64_t* chosen, int count) {
  Tile t;
  t.count = count;
  for (int lane = 0; lane < kLanes; ++lane) {
    int64_t ray = t.ray[lane] = chosen[lane < count ? lane : 0];
    t.alive[lane] = lane < count ? -1 : 0;
    for (int axis = 0; axis < 3; ++axis) {
      t.origin[axis][lane] = origins[ray * 3 + axis];
      t.direction[axis][lane] = directions[ray * 3 + axis];
    }
    t.leave[lane] = leave[ray];
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

// Samples along the rays of a tile that are decoded together: what they need stays in the first-level cache.
constexpr int kSteps = 4;
constexpr int kRows = kSteps * kLanes;

// Everything that is known of up to kSteps samples of a tile. Row v * kLanes + lane of a matrix: ray `lane`'s v-th.
struct Block {
  explicit Block(const Layers& l)
      : store(new Lanes[kRows * (l.channels + 2 * l.units + l.features) / kLanes]()),
        features(reinterpret_cast<float*>(store.get())),
        hidden(features + kRows * l.channels),
        slope(hidden + kRows * l.units),
        out(slope + kRows * l.units) {}

  Memory store;
  float *features, *hidden, *slope, *out;  // slope: of the hidden activation; out: logistic values
  Lanes raw[kSteps];                       // density before its activation
  Lanes distance[kSteps + 1];              // along the ray, and that of the sample behind the block
  Lanes point[kSteps][3];
  Whole inside[kSteps];
  Corners corners[kSteps];
  int steps;
};

// Place the samples at distance(0), distance(1) ... of `steps`; returns whether any of them lies in the box.
template <class Distance>
bool place(const Sizes& sizes, const Tile& t, int64_t steps, Block& block, Distance distance) {
  block.steps = steps < kSteps ? steps : kSteps;
  Whole any = {};
  for (int v = 0; v < block.steps; ++v) {
    block.distance[v] = distance(v);
    Lanes(&p)[3] = block.point[v];
    for (int axis = 0; axis < 3; ++axis)
      p[axis] = t.origin[axis] + rounded(block.distance[v] * t.direction[axis]);  // as PyTorch rounds it
    block.inside[v] = t.alive & ~outside(p[0], p[1], p[2], sizes.half_side);
    any |= block.inside[v];
  }
  block.distance[block.steps] = block.steps == steps ? t.leave : distance(block.steps);
  for (int lane = 0; lane < kLanes; ++lane)
    if (any[lane]) return true;
  return false;
}

inline void read_planes(const Sizes& sizes, const float* planes, const Layers& layers, Block& block) {
  for (int v = 0; v < block.steps; ++v) {
    Corners& corners = block.corners[v];
    find_corners(sizes, block.point[v], corners);
    for (int lane = 0; lane < kLanes; ++lane) {
      float* row = block.features + (v * kLanes + lane) * layers.channels;
      if (!block.inside[v][lane]) {
        memset(row, 0, layers.channels * sizeof(float));
        continue;
      }
      for (int c = 0; c < layers.channels; c += kLanes) {
        Lanes sum = {};
#pragma GCC unroll 12
        for (int q = 0; q < 12; ++q) sum += load(planes + corners.offset[q][lane] + c) * corners.share[q][lane];
        cad::store(row + c, sum);
      }
    }
  }
}

// From features to hidden units and raw density.
template <bool with_slope> void decode_density(const Layers& layers, Block& block) {
  const int rows = block.steps * kLanes;
  multiply(layers.to_hidden, block.features, layers.channels, rows, block.hidden);
  for_vectors(rows * layers.units / kLanes, [&](int i, auto x) {
    Lanes* at = reinterpret_cast<Lanes*>(block.hidden) + i;
    auto tail = x;
    read(at, x);
    write(at, softplus(x, tail));
    if (with_slope) write(reinterpret_cast<Lanes*>(block.slope) + i, logistic(x, tail));
  });
  for (int v = 0; v < block.steps; ++v)
    block.raw[v] =
        products(block.hidden + v * kLanes * layers.units, layers.units, layers.density, 0) + layers.density_bias;
}

// From hidden units to `out`, the radiance's logistic values [kRows][features].
inline void decode_radiance(const Layers& layers, const Block& block, float* out) {
  const int rows = block.steps * kLanes;
  multiply(layers.to_radiance, block.hidden, layers.units, rows, out);
  for_vectors(rows * layers.features / kLanes, [&](int i, auto x) {
    Lanes* at = reinterpret_cast<Lanes*>(out) + i;
    read(at, x);
    write(at, logistic(x));
  });
}

// The density of the v-th sample of each ray, and its derivative by the raw one.
inline Lanes density(const Block& block, int v, Lanes& slope) {
  Lanes tail, sigma = softplus(block.raw[v], tail);
  slope = logistic(block.raw[v], tail);
  return block.inside[v] ? sigma : every<Lanes>(0.f);
}

}  // namespace cad
