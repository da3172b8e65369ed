// Volume rendering on a CPU: tiles of rays that hit the box, a few samples at a time.
#include "hierarchy.h"

using namespace cad;

namespace {

// What a thread works with.
struct Scratch {
  Scratch(const Layers& l, int64_t samples, int features) : block(l), sum(l), all(samples, features) {}

  Block block;
  Sum sum;
  Union all;
};

// Evaluate the samples of `all` from `first` to `last`, whose distances are known; radiance too where it is asked for.
void evaluate(const Sizes& s, const float* planes, const Layers& layers, const Tile& t, Block& block, Union& all,
              int64_t first, int64_t last) {
  for (int64_t at = first; at < last; at += kSteps) {
    bool any = place(s, t, last - at, block, [&](int v) { return all.distance[at + v]; });
    Lanes slope;
    if (any) {
      read_planes(s, planes, layers, block);
      decode_density<false>(layers, block);
      decode_radiance(layers, block, all.radiance + at * kLanes * layers.features);
    } else {
      std::fill_n(all.radiance + at * kLanes * layers.features, block.steps * kLanes * layers.features, 0.f);
    }
    for (int v = 0; v < block.steps; ++v) all.density[at + v] = any ? density(block, v, slope) : Lanes{};
  }
}

void render_tile_hierarchically(const Sizes& s, const float* planes, const float* enters, const Layers& layers,
                                const Draws& draws, const Tile& t, Scratch& scratch, const Outputs& to) {
  auto& [block, sum, all] = scratch;
  const Lanes enter = gather(t, enters, 1);
  place_coarse(s, draws, t, enter, all);
  evaluate(s, planes, layers, t, block, all, 0, s.samples);
  sum.clear(layers);
  Lanes* weights = all.sorted_density;  // until the samples are sorted
  for (int64_t i = 0; i < s.samples; ++i)
    weights[i] = sum.add(all.density[i], all.distance[i], i + 1 < s.samples ? all.distance[i + 1] : t.leave);
  place_fine(s, draws, t, enter, weights, all);
  evaluate(s, planes, layers, t, block, all, s.samples, all.size);

  merge(s.samples, all);
  sum.clear(layers);
  for (int64_t i = 0; i < all.size; ++i)
    all.sorted_density[i] = sum.add(all.sorted_density[i], all.sorted_distance[i],
                                    i + 1 < all.size ? all.sorted_distance[i + 1] : t.leave);
  Lanes* weight = all.density;  // back in the order of evaluation
  for (int64_t i = 0; i < all.size; ++i)
    for (int lane = 0; lane < kLanes; ++lane)
      reinterpret_cast<float*>(weight)[all.order[i][lane]] = all.sorted_density[i][lane];
  for (int64_t at = 0; at < all.size; at += kSteps)
    sum.add_radiance(layers, weight + at, all.radiance + at * kLanes * layers.features,
                     std::min<int64_t>(kSteps, all.size - at));
  sum.finish(s, layers, t, to);
  if (to.samples)
    for (int64_t i = 0; i < all.size; ++i) scatter(t, to.samples + i, all.size, all.sorted_distance[i]);
}

void render_tile(const Sizes& s, const float* planes, const Rays& rays, const Layers& layers, const Tile& t,
                 Scratch& scratch, const Outputs& to) {
  auto& [block, sum, all] = scratch;
  sum.clear(layers);
  for (int64_t first = 0; first < s.samples; first += kSteps) {
    auto distance = [&](int v) { return gather(t, rays.depths + first + v, s.samples); };
    if (!place(s, t, s.samples - first, block, distance)) continue;
    read_planes(s, planes, layers, block);
    decode_density<false>(layers, block);
    decode_radiance(layers, block, block.out);
    Lanes weight[kSteps], slope;
    for (int v = 0; v < block.steps; ++v) {
      weight[v] = sum.add(density(block, v, slope), block.distance[v], block.distance[v + 1]);
      if (to.samples) scatter(t, to.samples + first + v, s.samples, weight[v]);
    }
    sum.add_radiance(layers, weight, block.out, block.steps);
  }
  sum.finish(s, layers, t, to);
}

// Merge the coarse and the fine positions of each ray of a tile into ascending positions.
void refine_tile(const Sizes& s, const float* planes, const Rays& rays, const Layers& layers, const float* coarse,
                 const float* draws, float uniform_share, const Tile& t, Scratch& scratch, float* positions) {
  auto& [block, sum, all] = scratch;
  const int64_t fine = all.size - s.samples;
  sum.clear(layers);
  Lanes* weights = all.density;
  for (int64_t first = 0; first < s.samples; first += kSteps) {
    auto distance = [&](int v) { return gather(t, rays.depths + first + v, s.samples); };
    bool any = place(s, t, s.samples - first, block, distance);
    if (any) {
      read_planes(s, planes, layers, block);
      decode_density<false>(layers, block);
    }
    Lanes slope;
    for (int v = 0; v < block.steps; ++v)
      weights[first + v] =
          any ? sum.add(density(block, v, slope), block.distance[v], block.distance[v + 1]) : Lanes{};
  }
  for (int64_t i = 0; i < fine; ++i) all.distance[s.samples + i] = gather(t, draws + i, fine);
  inverse_distributions(weights, s.samples, all.distance + s.samples, fine, uniform_share, all.sorted_density);
  for (int64_t i = 0; i < s.samples; ++i) all.distance[i] = gather(t, coarse + i, s.samples);
  merge(s.samples, all);
  for (int64_t i = 0; i < all.size; ++i) scatter(t, positions + i, all.size, all.sorted_distance[i]);
}

// Whether a ray has a chord: one that misses the box sees nothing.
auto has_chord(const Sizes& s, const Rays& rays) {
  return [&](int64_t ray) { return rays.leave[ray] > rays.depths[ray * s.samples]; };
}

}  // namespace

// All functions return whether the planes are finite; if not, what they wrote means nothing.
extern "C" {

int64_t cad_padded(const Sizes* s) { return s->padded(); }

int cad_pack(const Sizes* s, const Planes* planes, float* packed) {
  std::vector<char> sound(s->batch);
  at::parallel_for(0, s->batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t volume = begin; volume < end; ++volume)
      sound[volume] = pack(*s, *planes, volume, packed + volume * s->packed());
  });
  return std::all_of(sound.begin(), sound.end(), [](char volume) { return volume; });
}

int cad_render(const Sizes* sizes, const Planes* planes, const Rays* rays, const Decoder* decoder, const Outputs* to) {
  const Sizes& s = *sizes;
  const Layers layers(s, *decoder);
  return for_each_piece(s, *planes, [&] { return Scratch(layers, 0, 0); },
                        [&](Scratch& scratch, const float* packed, int64_t first, int64_t last) {
    clear(s, *to, first, last);
    if (to->samples) std::fill(to->samples + first * s.samples, to->samples + last * s.samples, 0.f);
    for_each_tile(first, last, has_chord(s, *rays), [&](const int64_t* chosen, int count) {
      Tile t = tile(rays->origins, rays->directions, rays->leave, chosen, count);
      render_tile(s, packed, *rays, layers, t, scratch, *to);
    });
  });
}

// `cad_refine` and `cad_render` at once, each coarse sample evaluated once; rays->depths [B, R, 1]: where they enter
// the box. to->samples: the ascending union's distances [B, R, S + T], or null.
int cad_render_hierarchical(const Sizes* sizes, const Planes* planes, const Rays* rays, const Decoder* decoder,
                            const Draws* draws, const Outputs* to) {
  Sizes s = *sizes;
  s.samples = draws->coarse_count;
  const int64_t size = draws->coarse_count + draws->fine_count;
  const Layers layers(s, *decoder);
  return for_each_piece(s, *planes, [&] { return Scratch(layers, size, layers.features); },
                        [&](Scratch& scratch, const float* packed, int64_t first, int64_t last) {
    clear(s, *to, first, last);
    if (to->samples)
      for (int64_t ray = first; ray < last; ++ray) std::fill_n(to->samples + ray * size, size, rays->leave[ray]);
    for_each_tile(first, last, has_chord(*sizes, *rays), [&](const int64_t* chosen, int count) {
      Tile t = tile(rays->origins, rays->directions, rays->leave, chosen, count);
      render_tile_hierarchically(s, packed, rays->depths, layers, *draws, t, scratch, *to);
    });
  });
}

// Coarse positions [B, R, S] (at distances rays->depths) and ascending draws [B, R, T], all in [0, 1], to the ascending
// union [B, R, S + T] of the coarse positions and those that the coarse weights choose.
int cad_refine(const Sizes* sizes, const Planes* planes, const Rays* rays, const Decoder* decoder, float* const* given,
               int64_t fine, float uniform_share) {
  const Sizes& s = *sizes;
  const float *coarse = given[0], *draws = given[1];
  float* positions = given[2];
  const Layers layers(s, *decoder);
  return for_each_piece(s, *planes, [&] { return Scratch(layers, s.samples + fine, 0); },
                        [&](Scratch& scratch, const float* packed, int64_t first, int64_t last) {
    std::fill(positions + first * (s.samples + fine), positions + last * (s.samples + fine), 0.f);
    for_each_tile(first, last, has_chord(s, *rays), [&](const int64_t* chosen, int count) {
      Tile t = tile(rays->origins, rays->directions, rays->leave, chosen, count);
      refine_tile(s, packed, *rays, layers, coarse, draws, uniform_share, t, scratch, positions);
    });
  });
}

}  // extern "C"
