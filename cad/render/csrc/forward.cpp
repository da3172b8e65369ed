// Volume rendering on a CPU: tiles of rays that hit the box, a few samples at a time, nothing kept per sample.
#include <cmath>
#include <vector>

#include "tiles.h"

using namespace cad;

namespace {

constexpr int64_t kRaysAtOnce = 256;  // of one piece of work without gradients

// Run work(volume, first ray, last ray) over all rays of all volumes.
template <class Work> void for_each_piece(const Sizes& s, Work work) {
  int64_t pieces = (s.rays + kRaysAtOnce - 1) / kRaysAtOnce;
  at::parallel_for(0, s.batch * pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t volume = i / pieces, first = volume * s.rays + i % pieces * kRaysAtOnce;
      work(volume, first, std::min(first + kRaysAtOnce, (volume + 1) * s.rays));
    }
  });
}

void render_tile(const Sizes& s, const float* planes, const Rays& rays, const Decoder& decoder, const Tile& t,
                 Block& block, Lanes* features, float* out, float* opacity, float* depth, float* weights) {
  Lanes thickness = {}, covered = {}, distance = {};
  std::fill_n(features, s.outputs - 1, Lanes{});
  for (int64_t first = 0; first < s.samples; first += kSteps) {
    if (!place(s, rays, t, first, block)) continue;
    read_planes(s, planes, block);
    decode<false>(s, decoder, s.outputs, block);
    Lanes weight[kSteps], slope, arriving;
    for (int v = 0; v < block.steps; ++v) {
      Lanes spacing = block.distance[v + 1] - block.distance[v];
      weight[v] = composite(density(block, v, slope), spacing, thickness, arriving);
      covered += weight[v];
      distance += weight[v] * block.distance[v];
      if (weights) scatter(t, weights + first + v, s.samples, weight[v]);
    }
    for (int k = 1; k < s.outputs; ++k)
      for_steps(block.steps, [&](int v, auto share) {
        auto out = share;
        read(weight + v, share);
        read(block.out + k * kSteps + v, out);
        features[k - 1] += add_steps(share * radiance(logistic(out)));
      });
  }
  Lanes passed = 1.f - covered;
  for (int k = 0; k < s.outputs - 1; ++k)
    scatter(t, out + k, s.outputs - 1, k < kColors ? features[k] + passed : features[k]);
  scatter(t, opacity, 1, covered);
  scatter(t, depth, 1, distance + passed * s.far);
}

// Merge the coarse and the fine positions of each ray of a tile into ascending distances.
void refine_tile(const Sizes& s, const Tile& t, const Lanes* weights, const float* coarse, const float* draws,
                 int64_t fine, float uniform_share, float* scratch, float* positions) {
  float *weight = scratch, *share = weight + s.samples, *found = share + s.samples;
  for (int lane = 0; lane < t.count; ++lane) {
    int64_t ray = t.ray[lane];
    for (int64_t i = 0; i < s.samples; ++i) weight[i] = weights[i][lane];
    inverse_distribution(weight, s.samples, draws + ray * fine, fine, uniform_share, share, found);
    const float* first = coarse + ray * s.samples;
    std::merge(first, first + s.samples, found, found + fine, positions + ray * (s.samples + fine));
  }
}

}  // namespace

extern "C" {

int64_t cad_padded(const Sizes* s) { return s->padded(); }

// planes [B, 3, C, H, W] with these strides to [B, 3, H, W, padded C]; returns 0 where a value is not finite.
int cad_pack(const Sizes* s, const float* planes, const int64_t* strides, float* packed) {
  const int64_t width = s->width, padded = s->padded(), rows = s->batch * 3 * s->height;
  std::vector<char> sound(rows, 1);
  at::parallel_for(0, rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* from = planes + row / (3 * s->height) * strides[0] + row / s->height % 3 * strides[1] +
                          row % s->height * strides[3];
      float *to = packed + row * width * padded, nothing = 0.f;
      for (int64_t c = 0; c < padded; ++c)
        for (int64_t x = 0; x < width; ++x) {
          float value = c < s->channels ? from[c * strides[2] + x * strides[4]] : 0.f;
          nothing += value * 0.f;
          to[x * padded + c] = value;
        }
      sound[row] = nothing == 0.f;
    }
  });
  return std::all_of(sound.begin(), sound.end(), [](char row) { return row; });
}

void cad_render(const Sizes* sizes, const float* planes, const Rays* rays, const Decoder* decoder, float* const* outputs) {
  const Sizes& s = *sizes;
  float *features = outputs[0], *opacity = outputs[1], *depth = outputs[2], *weights = outputs[3];  // weights may be null
  for_each_piece(s, [&](int64_t volume, int64_t first, int64_t last) {
    for (int64_t ray = first; ray < last; ++ray) {  // what a ray that misses the box sees
      for (int64_t k = 0; k < s.outputs - 1; ++k) features[ray * (s.outputs - 1) + k] = k < kColors ? 1.f : 0.f;
      opacity[ray] = 0.f;
      depth[ray] = s.far;
    }
    if (weights) std::fill(weights + first * s.samples, weights + last * s.samples, 0.f);
    Block block(s);
    Memory sum(new Lanes[s.outputs]);
    for_each_tile(s, *rays, first, last, false, [&](const Tile& t) {
      render_tile(s, planes + volume * s.packed(), *rays, *decoder, t, block, sum.get(), features, opacity, depth,
                  weights);
    });
  });
}

// Coarse positions [B, R, S] (at distances rays->depths) and ascending draws [B, R, T], all in [0, 1], to the ascending
// union [B, R, S + T] of the coarse positions and those that the coarse weights choose.
void cad_refine(const Sizes* sizes, const float* planes, const Rays* rays, const Decoder* decoder, float* const* given,
                int64_t fine, float uniform_share) {
  const Sizes& s = *sizes;
  const float *coarse = given[0], *draws = given[1];
  float* positions = given[2];
  for_each_piece(s, [&](int64_t volume, int64_t first, int64_t last) {
    std::fill(positions + first * (s.samples + fine), positions + last * (s.samples + fine), 0.f);
    Block block(s);
    Memory weights(new Lanes[s.samples]);
    std::vector<float> scratch(2 * s.samples + fine);
    for_each_tile(s, *rays, first, last, false, [&](const Tile& t) {
      Lanes thickness = {}, slope, arriving;
      std::fill_n(weights.get(), s.samples, Lanes{});
      for (int64_t at = 0; at < s.samples; at += kSteps) {
        if (!place(s, *rays, t, at, block)) continue;
        read_planes(s, planes + volume * s.packed(), block);
        decode<false>(s, *decoder, 1, block);
        for (int v = 0; v < block.steps; ++v)
          weights[at + v] = composite(density(block, v, slope), block.distance[v + 1] - block.distance[v], thickness,
                                      arriving);
      }
      refine_tile(s, t, weights.get(), coarse, draws, fine, uniform_share, scratch.data(), positions);
    });
  });
}

}  // extern "C"
