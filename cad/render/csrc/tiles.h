// How the work is cut: by the sizes alone and summed in a fixed order, so any number of threads gives the same bits.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "field.h"

namespace cad {

// Planes [B, 3, C, H, W] and their strides, mirrored by `_Planes` in cad/render/call.py.
struct Planes {
  const float* values;
  int64_t strides[5];
};

// Copy a volume's planes to [3, H, W, padded C]; returns whether all values are finite.
inline bool pack(const Sizes& s, const Planes& planes, int64_t volume, float* to) {
  const int64_t width = s.width, padded = s.padded(), *strides = planes.strides;
  Lanes nothing = {};
  for (int64_t row = 0; row < 3 * s.height; ++row)
    for (int64_t c = 0; c < padded; c += kLanes)
      for (int64_t x = 0; x < width; x += kLanes) {
        const float* from = planes.values + volume * strides[0] + row / s.height * strides[1] + c * strides[2] +
                            row % s.height * strides[3] + x * strides[4];
        const int64_t channels = std::min<int64_t>(kLanes, s.channels - c);
        const int64_t columns = std::min<int64_t>(kLanes, width - x);
        Lanes square[kLanes] = {};
        for (int64_t i = 0; i < channels; ++i) {
          if (strides[4] == 1 && columns == kLanes) {
            square[i] = load(from + i * strides[2]);
          } else {
            for (int64_t j = 0; j < columns; ++j) square[i][j] = from[i * strides[2] + j * strides[4]];
          }
          nothing += square[i] * 0.f;
        }
        transpose(square);
        for (int64_t j = 0; j < columns; ++j) store(to + (row * width + x + j) * padded + c, square[j]);
      }
  return total(nothing) == 0.f;
}

// The packed planes of the volumes that are worked on: packed by the first piece of work that takes them, given up
// behind the last one, so that few volumes are in memory at once.
class Volumes {
 public:
  Volumes(const Sizes& s, const Planes& planes, int64_t pieces) : sizes_(s), planes_(planes), slots_(s.batch) {
    for (Slot& slot : slots_) slot.left = pieces;
  }

  const float* take(int64_t volume) {
    Slot& slot = slots_[volume];
    std::call_once(slot.packed, [&] {
      slot.planes.reset(new Lanes[sizes_.packed() / kLanes]);
      slot.sound = pack(sizes_, planes_, volume, values(slot));
    });
    return values(slot);
  }

  // Returns whether this was the last piece of the volume.
  bool give_up(int64_t volume) {
    if (--slots_[volume].left) return false;
    slots_[volume].planes.reset();
    return true;
  }

  // Whether all planes that were taken are finite.
  bool sound() const {
    return std::all_of(slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.sound; });
  }

 private:
  struct Slot {
    std::once_flag packed;
    std::atomic<int64_t> left;
    bool sound = true;
    Memory planes;
  };

  static float* values(Slot& slot) { return reinterpret_cast<float*>(slot.planes.get()); }

  Sizes sizes_;
  Planes planes_;
  std::vector<Slot> slots_;
};

constexpr int64_t kRaysAtOnce = 256;  // of one piece of work without gradients

inline int64_t pieces(const Sizes& s) { return (s.rays + kRaysAtOnce - 1) / kRaysAtOnce; }

// Run work(scratch, volume, first ray, last ray) over all rays of all volumes; make() is a thread's scratch.
template <class Make, class Work> void for_each_piece(const Sizes& s, Make make, Work work) {
  const int64_t count = pieces(s);
  at::parallel_for(0, s.batch * count, 1, [&](int64_t begin, int64_t end) {
    auto scratch = make();
    for (int64_t i = begin; i < end; ++i) {
      int64_t volume = i / count, first = volume * s.rays + i % count * kRaysAtOnce;
      work(scratch, volume, first, std::min(first + kRaysAtOnce, (volume + 1) * s.rays));
    }
  });
}

// The same with the volume's packed planes in its place; returns whether all planes are finite.
template <class Make, class Work>
bool for_each_piece(const Sizes& s, const Planes& planes, Make make, Work work) {
  Volumes volumes(s, planes, pieces(s));
  for_each_piece(s, make, [&](auto& scratch, int64_t volume, int64_t first, int64_t last) {
    work(scratch, volumes.take(volume), first, last);
    volumes.give_up(volume);
  });
  return volumes.sound();
}

// Chosen rays from `first` to `last`, in groups of kLanes: visit(rays, count).
template <class Chosen, class Visit> void for_each_tile(int64_t first, int64_t last, Chosen chosen, Visit visit) {
  int64_t rays[kLanes];
  int count = 0;
  for (int64_t ray = first; ray < last; ++ray) {
    if (!chosen(ray)) continue;
    rays[count++] = ray;
    if (count == kLanes) {
      visit(rays, count);
      count = 0;
    }
  }
  if (count) visit(rays, count);
}

// Where the outputs of a rendering go: [B, R, F], [B, R], [B, R], and per sample [B, R, S] or null.
struct Outputs {
  float *features, *opacity, *depth, *samples;
};

// What rays without a chord see.
inline void clear(const Sizes& s, const Outputs& to, int64_t first, int64_t last) {
  for (int64_t ray = first; ray < last; ++ray) {
    for (int64_t k = 0; k < s.outputs - 1; ++k) to.features[ray * (s.outputs - 1) + k] = k < kColors ? 1.f : 0.f;
    to.opacity[ray] = 0.f;
    to.depth[ray] = s.far;
  }
}

// What a tile's samples add up to: weights, weighted distances, and weighted logistic values [kLanes][features].
struct Sum {
  explicit Sum(const Layers& l) : store(new Lanes[l.features]), values(reinterpret_cast<float*>(store.get())) {}

  void clear(const Layers& l) {
    covered = distance = thickness = Lanes{};
    std::fill_n(values, kLanes * l.features, 0.f);
  }

  // Composite one sample of each ray; returns its weights.
  Lanes add(Lanes density, Lanes at, Lanes next) {
    Lanes arriving, weight = composite(density, next - at, thickness, arriving);
    covered += weight;
    distance += weight * at;
    return weight;
  }

  // Add `steps` samples of each ray: weight[v], and logistic values out [steps][kLanes][features].
  void add_radiance(const Layers& l, const Lanes* weight, const float* out, int steps) {
    for (int lane = 0; lane < kLanes; ++lane)
      for (int k = 0; k < l.features; k += kLanes) {
        float* to = values + lane * l.features + k;
        Lanes sum = load(to);
        for (int v = 0; v < steps; ++v) sum += weight[v][lane] * load(out + (v * kLanes + lane) * l.features + k);
        cad::store(to, sum);
      }
  }

  // The rays as they are seen, on white.
  void finish(const Sizes& s, const Layers& l, const Tile& t, const Outputs& to) const {
    Lanes passed = 1.f - covered;
    for (int lane = 0; lane < t.count; ++lane)
      for (int64_t k = 0; k < s.outputs - 1; ++k) {
        // Radiance is an affine function of the logistic value, so its weighted sum is one of sum and weights.
        float seen = values[lane * l.features + k] * kRadianceScale + covered[lane] * kRadianceStart;
        to.features[t.ray[lane] * (s.outputs - 1) + k] = k < kColors ? seen + passed[lane] : seen;
      }
    scatter(t, to.opacity, 1, covered);
    scatter(t, to.depth, 1, distance + passed * s.far);
  }

  Memory store;
  float* values;
  Lanes covered, distance, thickness;
};

}  // namespace cad
