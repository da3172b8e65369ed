// Rendering for inference on a CPU: samples that an occupancy grid knows to be empty are not evaluated, and rays end
// where no light passes. The samples that remain are decoded side by side, whatever rays they lie on.
#include "hierarchy.h"

using namespace cad;

namespace {

// Occupancy grids of all volumes, mirrored by `_Grid` in cad/render/inference.py; see volume.h.
struct Grid {
  const int32_t* bits;  // [B, words]
  int64_t words, side, shift;
  float empty;  // density below which a sample that was evaluated counts as empty too
};

constexpr float kUnknown = -1.f;  // instead of a density: not evaluated

// Samples of a tile that wait to be decoded together.
struct Queue {
  int count = 0;
  int32_t sample[kRows];  // step * kLanes + lane
};

// What a thread works with.
struct Scratch {
  Scratch(const Layers& l, int64_t samples) : block(l), sum(l), all(samples, 0) {}

  Block block;
  Sum sum;
  Union all;
  Queue queue;
};

struct March {
  const Sizes& s;
  const float* planes;
  const int32_t* bits;
  const Grid& grid;
  const Layers& layers;
  const Tile& t;
  Scratch& scratch;

  // Let the samples at these distances wait, of the rays in `asked`, unless they are known to be empty.
  void enqueue(Lanes distance, Whole asked, int64_t step) {
    Lanes p[3];
    for (int axis = 0; axis < 3; ++axis) p[axis] = t.origin[axis] + rounded(distance * t.direction[axis]);
    Whole place = place_in_grid<Lanes, Whole>(p[0], p[1], p[2], s.width, grid.shift, grid.side, s.half_side);
    Whole word = (Whole)gather(reinterpret_cast<const float*>(bits), place >> 5);
    Whole wanted = asked & ~outside(p[0], p[1], p[2], s.half_side) & -occupied(word, place);
    Queue& queue = scratch.queue;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (!wanted[lane]) continue;
      for (int axis = 0; axis < 3; ++axis)
        scratch.block.point[queue.count / kLanes][axis][queue.count % kLanes] = p[axis][lane];
      queue.sample[queue.count++] = step * kLanes + lane;
    }
  }

  bool full() const { return scratch.queue.count > kRows - kLanes; }

  // Decode what waits: densities go to their places, radiance to block.out.
  template <bool with_radiance> void decode(Lanes* densities) {
    Block& block = scratch.block;
    const Queue& queue = scratch.queue;
    if (!queue.count) return;
    block.steps = (queue.count + kLanes - 1) / kLanes;
    for (int v = 0; v < block.steps; ++v) block.inside[v] = kLane < queue.count - v * kLanes;
    read_planes(s, planes, layers, block);
    decode_density<false>(layers, block);
    if (with_radiance) decode_radiance(layers, block, block.out);
    for (int v = 0; v < block.steps; ++v) {
      Lanes slope, found = density(block, v, slope);
      for (int row = v * kLanes; row < std::min((v + 1) * kLanes, queue.count); ++row)
        reinterpret_cast<float*>(densities)[queue.sample[row]] = found[row % kLanes];
    }
  }

  // Coarse weights; densities become kUnknown where the ray had ended.
  void march_coarse(int64_t count, Lanes* weights) {
    Union& all = scratch.all;
    Sum& sum = scratch.sum;
    int64_t done = 0;
    for (int64_t i = 0; i < count; ++i) {
      all.density[i] = Lanes{};
      enqueue(all.distance[i], t.alive & ~spent(sum.thickness), i);
      if (!full() && i + 1 < count) continue;
      decode<false>(all.density);
      scratch.queue.count = 0;
      for (; done <= i; ++done) {
        Whole ended = spent(sum.thickness);
        weights[done] = sum.add(ended ? Lanes{} : all.density[done], all.distance[done],
                                done + 1 < count ? all.distance[done + 1] : t.leave);
        all.density[done] = ended ? every<Lanes>(kUnknown) : all.density[done];
      }
    }
  }

  // All samples in ascending order, whose densities are known from the coarse ones or kUnknown.
  void march() {
    Union& all = scratch.all;
    Sum& sum = scratch.sum;
    Queue& queue = scratch.queue;
    const Lanes* distances = all.sorted_distance;
    Lanes *densities = all.sorted_density, *weights = all.density;
    int64_t done = 0;
    for (int64_t i = 0; i < all.size; ++i) {
      Whole asked = t.alive & ~spent(sum.thickness) & ((densities[i] < 0.f) | ~(densities[i] < grid.empty));
      densities[i] = Lanes{};
      enqueue(distances[i], asked, i);
      if (!full() && i + 1 < all.size) continue;
      decode<true>(densities);
      for (; done <= i; ++done) {
        Lanes visible = spent(sum.thickness) ? Lanes{} : densities[done];
        weights[done] = sum.add(visible, distances[done], done + 1 < all.size ? distances[done + 1] : t.leave);
      }
      for (int row = 0; row < queue.count; ++row) {
        const float weight = reinterpret_cast<const float*>(weights)[queue.sample[row]];
        float* to = sum.values + queue.sample[row] % kLanes * layers.features;
        for (int k = 0; k < layers.features; k += kLanes)
          store(to + k, load(to + k) + weight * load(scratch.block.out + row * layers.features + k));
      }
      queue.count = 0;
    }
  }

  void render(const Draws& draws, Lanes enter, const Outputs& to) {
    Union& all = scratch.all;
    place_coarse(s, draws, t, enter, all);
    scratch.sum.clear(layers);
    march_coarse(draws.coarse_count, all.sorted_density);
    place_fine(s, draws, t, enter, all.sorted_density, all);
    std::fill_n(all.density + draws.coarse_count, draws.fine_count, every<Lanes>(kUnknown));
    merge(draws.coarse_count, all);
    scratch.sum.clear(layers);
    march();
    scratch.sum.finish(s, layers, t, to);
  }
};

}  // namespace

extern "C" {

// packed: planes [B, 3, N, N, padded C]; rays->depths [B, R, 1]: where they enter the box; to->samples is not written.
void cad_render_volume(const Sizes* sizes, const float* packed, const Rays* rays, const Decoder* decoder,
                       const Draws* draws, const Grid* grid, const Outputs* to) {
  const Sizes& s = *sizes;
  const Layers layers(s, *decoder);
  auto make = [&] { return Scratch(layers, draws->coarse_count + draws->fine_count); };
  for_each_piece(s, make, [&](Scratch& scratch, int64_t volume, int64_t first, int64_t last) {
    clear(s, *to, first, last);
    auto chosen = [&](int64_t ray) { return rays->leave[ray] > rays->depths[ray]; };
    for_each_tile(first, last, chosen, [&](const int64_t* rays_of_tile, int count) {
      Tile t = tile(rays->origins, rays->directions, rays->leave, rays_of_tile, count);
      March march{s, packed + volume * s.packed(), grid->bits + volume * grid->words, *grid, layers, t, scratch};
      march.render(*draws, gather(t, rays->depths, 1), *to);
    });
  });
}

}  // extern "C"
