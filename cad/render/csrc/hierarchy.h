// Hierarchical sampling of a tile: coarse samples, fine ones where the coarse weights lie, and both in ascending order.
#pragma once

#include <cmath>

#include "tiles.h"

namespace cad {

// Positions of coarse samples and draws for fine ones, both ascending, in [0, 1] of each ray's chord: [B, S, R] and
// [B, T, R], or [S] and [T] where they are alike for all rays. Mirrored by `Draws` in cad/render/hierarchical.py.
struct Draws {
  const float *coarse, *fine;
  int64_t coarse_count, fine_count, alike;
  float uniform_share;

  // The i-th of each ray of a tile, of `count` that begin at `from`.
  Lanes draw(const Sizes& s, const Tile& t, const float* from, int64_t count, int64_t i) const {
    if (alike) return every<Lanes>(from[i]);
    return gather(t, from + (t.ray[0] / s.rays * (count - 1) + i) * s.rays, 1);
  }
};

// The union of the coarse samples of a tile and of those that their weights choose, ray by ray in ascending order.
struct Union {
  Union(int64_t size, int features)
      : size(size),
        store(new Lanes[size * (4 + features)]),
        density(store.get()),
        distance(density + size),
        sorted_density(distance + size),
        sorted_distance(sorted_density + size),
        radiance(reinterpret_cast<float*>(sorted_distance + size)),
        order(new Whole[size]) {}

  int64_t size;
  Memory store;
  Lanes *density, *distance, *sorted_density, *sorted_distance;  // coarse samples, then fine ones; in ascending order
  float* radiance;                                               // room for logistic values, [size][kLanes][features]
  std::unique_ptr<Whole[]> order;                                // where the i-th sample of each ray comes from
};

// `inverse_distribution` of all rays of a tile: coarse weights [parts] become the starts of their parts, draws [count]
// become positions. Counting is quicker than a search, whose branches no processor foresees.
inline void inverse_distributions(Lanes* weights, int parts, Lanes* draws, int count, float uniform_share,
                                  Lanes* width) {
  Lanes sum = {}, before = weights[0], here = before, start = {};
  for (int i = 0; i < parts; ++i) {
    Lanes after = i + 1 < parts ? weights[i + 1] : here;
    width[i] = (larger(before, here) + larger(here, after)) * 0.5f + uniform_share / parts;
    sum += width[i];
    before = here;
    here = after;
  }
  for (int i = 0; i < parts; ++i) {
    width[i] = width[i] / sum;
    weights[i] = start;
    start += width[i];
  }
  for (int i = 0; i < count; ++i) {
    Whole part = {};
    for (int k = 1; k < parts; ++k) part -= weights[k] <= draws[i];  // true is -1
    Whole at = part * kLanes + kLane;
    Lanes from = gather(reinterpret_cast<float*>(weights), at);
    Lanes inside = (draws[i] - from) / gather(reinterpret_cast<float*>(width), at);
    inside = smaller(larger(inside, Lanes{}), every<Lanes>(1.f));
    draws[i] = (real<Lanes, Whole>(part) + inside) / static_cast<float>(parts);
  }
}

// Sort the samples of a tile: of each ray two ascending lists, behind one another.
inline void merge(int coarse, Union& all) {
  const int size = all.size;
  const float *distance = reinterpret_cast<float*>(all.distance), *density = reinterpret_cast<float*>(all.density);
  Whole first = kLane, second = kLane + coarse * kLanes;
  const Whole first_end = second, second_end = kLane + size * kLanes;
  Lanes near = gather(distance, first), far = coarse < size ? gather(distance, second) : every<Lanes>(INFINITY);
  for (int i = 0; i < size; ++i) {
    Whole later = far < near, from = later ? second : first;
    all.order[i] = from;
    all.sorted_distance[i] = later ? far : near;
    all.sorted_density[i] = gather(density, from);
    second -= later * kLanes;
    first += (later + 1) * kLanes;
    Whole ended = later ? second >= second_end : first >= first_end, next = later ? second : first;
    Lanes following = ended ? every<Lanes>(INFINITY) : gather(distance, ended ? kLane : next);
    near = later ? near : following;
    far = later ? following : far;
  }
}

// Distances of the coarse samples, which lie first; enter: where the rays enter the box.
inline void place_coarse(const Sizes& s, const Draws& draws, const Tile& t, Lanes enter, Union& all) {
  for (int64_t i = 0; i < draws.coarse_count; ++i) {
    Lanes position = draws.draw(s, t, draws.coarse, draws.coarse_count, i);
    all.distance[i] = smaller(enter + position * (t.leave - enter), t.leave);
  }
}

// Distances of the fine samples behind them, by the coarse weights, which are overwritten.
inline void place_fine(const Sizes& s, const Draws& draws, const Tile& t, Lanes enter, Lanes* weights, Union& all) {
  Lanes* fine = all.distance + draws.coarse_count;
  for (int64_t i = 0; i < draws.fine_count; ++i) fine[i] = draws.draw(s, t, draws.fine, draws.fine_count, i);
  inverse_distributions(weights, draws.coarse_count, fine, draws.fine_count, draws.uniform_share, all.sorted_distance);
  for (int64_t i = 0; i < draws.fine_count; ++i) fine[i] = smaller(enter + fine[i] * (t.leave - enter), t.leave);
}

}  // namespace cad
