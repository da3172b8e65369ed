// Volume rendering on a GPU: a warp marches along 32 neighbouring rays, sample by sample, and keeps nothing of a sample.
#include "launch.h"
#include "samples.h"

using namespace cad;

namespace {

constexpr int kRowTiles = 2, kRows = 2 * kRowTiles, kThreads = 128;
constexpr int kWarps = kThreads / kWarp, kWarpRays = kRowTiles * 16;

using RawFeatures = float[kRowTiles][kOutTiles][4];  // of the samples of a quad's rays, as multiply_add has its sums

struct Outputs {
  float *features, *opacity, *depth, *weights;  // of csrc/call.h's Rendered; weights may be null
};

int hidden_units(const Sizes& s) { return (s.hidden + 15) / 16 * 16; }

// The tiles of kWarpRays rays of one volume each, one for each warp.
struct Tile {
  int volume;
  int64_t first, end;

  static CAD_HD int of_a_volume(const Sizes& s) { return (int(s.rays) + kWarpRays - 1) / kWarpRays; }
  static CAD_HD int count(const Sizes& s) { return int(s.batch) * of_a_volume(s); }
  __device__ __forceinline__ Tile(const Sizes& s, int tile) {
    volume = tile / of_a_volume(s);
    first = volume * s.rays + tile % of_a_volume(s) * kWarpRays;
    end = (volume + 1) * s.rays;
  }
};

// Go along the rays of a tile, each lane along its own: add(its sample's weight, the quad's raw features with kOutputs)
// where the warp looks at a sample, then keep(sample, its weight). Space: Everywhere or Grid, of samples.h.
template <bool kOutputs, class Space, class Add, class Keep>
__device__ __forceinline__ void march_along(const Sizes& s, const Plane* planes, const Layers& layers, int volume,
                                            const Ray& ray, bool alive, March& march, const Space& space, Add add,
                                            Keep keep) {
  float thickness = 0.f;
  for (int i = 0; i < s.samples; ++i) {
    const bool inside =
        march.step(s, ray, i) && alive && !(thickness > Space::kEnd) && space.occupied(s, volume, march.point);
    float weight = 0.f;
    if (any_lane(inside)) {
      float feature[kRows][kShare], partial[kRows];
      RawFeatures out;
      read_planes(s, planes + volume * s.packed(), march.point, feature);
      decode<kOutputs, kRowTiles>(layers, feature, partial, out, [](int, int, const float(&)[4]) {});
      float tail, arriving, raw = quad_sum(partial) + layers.density_bias - kDensityShift;
      weight = composite(inside ? softplus(raw, tail) : 0.f, march.next - march.distance, thickness, arriving);
      add(weight, out);
    }
    keep(i, weight);
  }
}

template <class Space>
__global__ void __launch_bounds__(kThreads)
    render_kernel(Sizes s, const Plane* planes, Rays rays, Decoder decoder, Outputs to, const int* faults, int units,
                  Space space) {
  const Layers layers = load_layers<false>(s, decoder, units, shared_memory());
  const int index = blockIdx.x * kWarps + warp();
  if (index >= Tile::count(s)) return;
  const Tile tile(s, index);
  const Ray ray = ray_at(rays, tile.first + row(place()), tile.end);
  March march(s, rays, ray);
  const bool alive = ray.exists && ray.leave > march.next;  // a ray that misses the box sees nothing
  const float nothing = *faults ? NAN : 0.f;                // no value that is not finite ever becomes a picture

  float sum[kRowTiles][kOutTiles][4] = {}, covered = 0.f, distance = 0.f;
  march_along<true>(
      s, planes, layers, tile.volume, ray, alive, march, space,
      [&](float weight, const RawFeatures& out) {
        covered += weight;
        distance += weight * march.distance;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const float share = of_quad(weight, r);
#pragma unroll
          for (int o = 0; o < kOutTiles; ++o)
#pragma unroll
            for (int e = r % 2 * 2; e < r % 2 * 2 + 2; ++e)
              sum[r / 2][o][e] += share * radiance(out_activation(out[r / 2][o][e]));
        }
      },
      [&](int i, float weight) {
        if (to.weights && ray.exists) to.weights[ray.index * s.samples + i] = weight + nothing;
      });
  const float passed = 1.f - covered;
  if (ray.exists) {
    to.opacity[ray.index] = covered + nothing;
    to.depth[ray.index] = distance + passed * s.far + nothing;
  }
  const int features = s.outputs - 1;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float light = of_quad(passed, r);
    const int64_t at = tile.first + row(r);
    if (at >= tile.end) continue;
#pragma unroll
    for (int o = 0; o < kOutTiles; ++o)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int k = o * 8 + place() * 2 + e;
        if (k < features) to.features[at * features + k] = sum[r / 2][o][r % 2 * 2 + e] + (k < kColors ? light : 0.f) + nothing;
      }
  }
}

// A column of a table in shared memory whose rows belong to the lanes of a warp.
struct Column {
  float* first;
  __device__ __forceinline__ float& operator[](int i) const { return first[i * kWarp]; }
};

template <class Space>
__global__ void __launch_bounds__(kThreads)
    refine_kernel(Sizes s, const Plane* planes, Rays rays, Decoder decoder, const float* coarse, const float* draws,
                  float* positions, int fine, float uniform_share, const int* faults, int units, Space space) {
  float* tables = shared_memory() + layer_floats(units, false);
  const Layers layers = load_layers<false>(s, decoder, units, shared_memory());
  const int index = blockIdx.x * (blockDim.x / kWarp) + warp();
  if (index >= Tile::count(s)) return;
  const Tile tile(s, index);
  const Ray ray = ray_at(rays, tile.first + row(place()), tile.end);
  March march(s, rays, ray);
  const bool alive = ray.exists && ray.leave > march.next;
  const Column weights{tables + warp() * s.samples * kWarp + lane()};

  march_along<false>(
      s, planes, layers, tile.volume, ray, alive, march, space, [](float, const RawFeatures&) {},
      [&](int i, float weight) { weights[i] = weight; });
  if (!ray.exists) return;
  const int samples = s.samples, count = samples + fine;
  float* to = positions + ray.index * count;
  if (*faults || !alive) {
    for (int i = 0; i < count; ++i) to[i] = *faults ? NAN : 0.f;
    return;
  }
  // The fine positions wait at the end of the ray's row, where merging never overtakes them.
  inverse_distribution(weights, samples, draws + ray.index * fine, fine, uniform_share, weights, to + samples);
  const float* first = coarse + ray.index * samples;
  for (int i = 0, j = 0; i < samples;) {
    const bool finer = j < fine && to[samples + j] < first[i];
    to[i + j] = finer ? to[samples + j] : first[i];
    finer ? ++j : ++i;
  }
}

template <class Space>
int render(const Sizes* s, const Plane* planes, const Rays* rays, const Decoder* decoder, const Outputs* outputs,
           Space space, const Launch* launch) {
  const int tiles = Tile::count(*s), units = hidden_units(*s);
  return run(render_kernel<Space>, (tiles + kWarps - 1) / kWarps, kThreads, layer_floats(units, false), launch, *s,
             planes, *rays, *decoder, *outputs, launch->faults, units, space);
}

// given: coarse positions [B, R, S] (at distances rays->depths), ascending draws [B, R, T], all in [0, 1], and where the
// ascending union [B, R, S + T] of the coarse positions and those that the coarse weights choose goes.
template <class Space>
int refine(const Sizes* s, const Plane* planes, const Rays* rays, const Decoder* decoder, float* const* given,
           int64_t fine, float uniform_share, Space space, const Launch* launch) {
  const int64_t table = s->samples * kWarp;
  const int tiles = Tile::count(*s), units = hidden_units(*s);
  int warps = kWarps;
  while (warps > 1 && layer_floats(units, false) + warps * table > kSharedFloats) warps /= 2;
  return run(refine_kernel<Space>, (tiles + warps - 1) / warps, warps * kWarp,
             layer_floats(units, false) + warps * table, launch, *s, planes, *rays, *decoder, given[0], given[1],
             given[2], int(fine), uniform_share, launch->faults, units, space);
}

}  // namespace

extern "C" {

int cad_render(const Sizes* s, const Plane* planes, const Rays* rays, const Decoder* decoder, const Outputs* outputs,
               const Launch* launch) {
  return render(s, planes, rays, decoder, outputs, Everywhere{}, launch);
}

int cad_refine(const Sizes* s, const Plane* planes, const Rays* rays, const Decoder* decoder, float* const* given,
               int64_t fine, float uniform_share, const Launch* launch) {
  return refine(s, planes, rays, decoder, given, fine, uniform_share, Everywhere{}, launch);
}

// `Grid` of samples.h, mirrored by `_Grid` in cad/render/inference.py.
struct GivenGrid {
  const int32_t* bits;
  int64_t words, side, shift;

  Grid grid() const { return {bits, int(words), int(side), int(shift)}; }
};

int cad_check(const Sizes* s, const Rays* rays, const Decoder* decoder, const Launch* launch);

// The same for prepared volumes, whose grids and faults are known; those of the rays are found before the last step.
int cad_render_volume(const Sizes* s, const Plane* planes, const Rays* rays, const Decoder* decoder,
                      const Outputs* outputs, const GivenGrid* grid, const Launch* launch) {
  if (int fault = cad_check(s, rays, decoder, launch)) return fault;
  return render(s, planes, rays, decoder, outputs, grid->grid(), launch);
}

int cad_refine_volume(const Sizes* s, const Plane* planes, const Rays* rays, const Decoder* decoder,
                      float* const* given, int64_t fine, float uniform_share, const GivenGrid* grid,
                      const Launch* launch) {
  return refine(s, planes, rays, decoder, given, fine, uniform_share, grid->grid(), launch);
}

}  // extern "C"
