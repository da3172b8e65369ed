// How the work is cut into tiles: by the sizes alone and summed in a fixed order, so any number of threads gives the
// same bits.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <memory>

#include "field.h"

namespace cad {

constexpr int kColors = 3;  // the first features lie on white

using Memory = std::unique_ptr<Lanes[]>;

// Rays from `first` to `last` that have a chord, in tiles: a ray that misses the box sees nothing.
template <class Visit>
void for_each_tile(const Sizes& s, const Rays& rays, int64_t first, int64_t last, bool all, Visit visit) {
  int64_t chosen[kLanes];
  int count = 0;
  for (int64_t ray = first; ray < last; ++ray) {
    if (!all && !(rays.leave[ray] > rays.depths[ray * s.samples])) continue;
    chosen[count++] = ray;
    if (count == kLanes) {
      visit(tile(rays, chosen, count));
      count = 0;
    }
  }
  if (count) visit(tile(rays, chosen, count));
}

}  // namespace cad
