// The backward pass of volume rendering on a GPU: samples are computed again, nothing of the forward pass is kept but the
// rendered rays. A block marches along neighbouring rays, 16 for each warp; at each sample its warps exchange what they
// found through shared memory, and each adds up its part of the decoder's gradient in registers: 16 units of the hidden
// layer. Only at the end of all its rays a block writes these sums, and a second kernel adds those of all blocks in a
// fixed order: the decoder's gradient has the same bits in each run on one kind of GPU. That of the planes has not, for
// texels get theirs by atomic additions, in the order in which the warps come.
#include "gradients.h"
#include "launch.h"

using namespace cad;

namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp, kBlockRays = kWarps * kWarpRays, kBlocksPerProcessor = 2;

// How the work is cut: units padded such that they are 16, 32 or 64.
struct Plan {
  int units = 16, tiles;  // tiles: of the rays of one volume

  explicit Plan(const Sizes& s) : tiles(int((s.rays + kBlockRays - 1) / kBlockRays)) {
    while (units < s.hidden) units *= 2;
  }
  CAD_HD int parts() const { return kWarps * 16 / units; }     // warps that add up the gradient of the same units
  CAD_HD int part_rays() const { return kBlockRays / parts(); }  // whose samples one of them takes
  int64_t blocks(const Sizes& s, int device) const {
    int processors = 1;
    cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    int64_t all = s.batch * tiles, most = processors * int64_t(kBlocksPerProcessor);
    return all < most ? all : most;
  }
};

// Numbers of the decoder: of the partial sums of a block's part, in the order of `Decoder`.
CAD_HD int64_t decoder_floats(const Sizes& s) { return s.hidden * (s.channels + 1) + s.outputs * (s.hidden + 1); }

template <bool kPoint>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(Sizes s, const Plane* planes, Rays rays, Decoder decoder, Rendered rendered, Gradients grads,
                    float* plane_grads, float* partial_sums, RayGradients ray_grads, const int* faults, Plan plan) {
  const Layers layers = load_layers<true>(s, decoder, plan.units, shared_memory());
  const int unit_stride = stride(plan.units), features = s.outputs - 1;
  // Of the block's rays at one sample: hidden activations, then their gradient; the gradient of the raw features, then
  // the features of the planes; the gradient of the raw density.
  float* staged_units = shared_memory() + layer_floats(plan.units, true);
  float* staged_columns = staged_units + kBlockRays * unit_stride;
  float* staged_density = staged_columns + kBlockRays * kColumnStride;
  float* own_units = staged_units + (warp() * kWarpRays + group()) * unit_stride + place() * 2;
  float* own_columns = staged_columns + (warp() * kWarpRays + group()) * kColumnStride;
  // The warp's part of the decoder's gradient: these units, by the samples of these rows.
  const int unit = warp() * 16 % plan.units, part = warp() * 16 / plan.units;
  const int first = part * plan.part_rays(), last = first + plan.part_rays();

  float hidden_sum[kInTiles][4] = {}, out_sum[kOutTiles][4] = {}, out_bias_sum[kOutTiles] = {};
  float hidden_bias_sum[2] = {}, density_sum[2] = {}, density_bias_sum = 0.f;
  const float nothing = *faults ? NAN : 0.f;

  for (int tile = blockIdx.x; tile < int(s.batch) * plan.tiles; tile += gridDim.x) {
    const int volume = tile / plan.tiles;
    const int64_t end = (volume + 1) * s.rays;
    const int64_t start = volume * s.rays + int64_t(tile % plan.tiles) * kBlockRays + warp() * kWarpRays;
    const Plane* texels = planes + volume * s.packed();
    const Ray ray = ray_at(rays, start + row(place() % kRows), end);
    March march(s, rays, ray);
    const bool alive = ray.exists && (kPoint || ray.leave > march.next), writes = ray.exists && place() < kRows;
    RayLoss loss(s, rendered, grads, ray.index);
    float out_grad[kOutTiles][4];  // of the rendered features, as multiply_add has its sums
#pragma unroll
    for (int o = 0; o < kOutTiles; ++o)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int64_t at = start + row(e / 2);
        const int k = o * 8 + place() * 2 + e % 2;
        out_grad[o][e] = at < end && k < features ? grads.features[at * features + k] : 0.f;
      }

    float thickness = 0.f, carried = 0.f, origin_grad[3] = {}, direction_grad[3] = {};  // carried: to the next sample
    for (int i = 0; i < s.samples; ++i) {
      const bool inside = march.step(s, ray, i) && alive && !(thickness > kOpaque);
      float distance_grad = carried;
      carried = 0.f;
      // The block meets here, so that nothing staged is overwritten that another warp still reads.
      if (__syncthreads_or(inside)) {
        float feature[kRows][kShare], partial[kRows], out[1][kOutTiles][4], tail, arriving;
        read_planes(s, texels, march.point, feature);
        decode<true, 1>(layers, feature, partial, out, [&](int n, int, const float(&hidden)[4]) {
          *reinterpret_cast<float2*>(own_units + n * 8) = make_float2(hidden[0], hidden[1]);
          *reinterpret_cast<float2*>(own_units + n * 8 + 8 * unit_stride) = make_float2(hidden[2], hidden[3]);
        });
        const float raw = quad_sum(partial) + layers.density_bias - kDensityShift, spacing = march.next - march.distance;
        const float density = inside ? softplus(raw, tail) : 0.f, density_slope = inside ? logistic(raw) : 0.f;
        const float weight = composite(density, spacing, thickness, arriving);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const float share = of_quad(weight, r);
          partial[r] = 0.f;
#pragma unroll
          for (int o = 0; o < kOutTiles; ++o)
#pragma unroll
            for (int e = 2 * r; e < 2 * r + 2; ++e) {
              const float logit = out_activation(out[0][o][e]);
              partial[r] += out_grad[o][e] * radiance(logit);
              out[0][o][e] = out_grad[o][e] * share * radiance_slope(logit);
            }
        }
        float by_weight = quad_sum(partial) + loss.weight + loss.depth * (march.distance - s.far);
        if (grads.weights) by_weight += grads.weights[ray.index * s.samples + i];
        loss.rest -= weight * by_weight;
        const float behind = i + 1 < s.samples ? loss.rest : 0.f;
        const float thickness_grad = by_weight * (arriving - weight) - behind;
        const float density_grad = thickness_grad * spacing * density_slope;
        distance_grad += loss.depth * weight - thickness_grad * density;
        carried = thickness_grad * density;

        float row_grad[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          row_grad[r] = of_quad(density_grad, r);
          if (place() == 0) staged_density[warp() * kWarpRays + row(r)] = row_grad[r];
#pragma unroll
          for (int o = 0; o < kOutTiles; ++o)
            *reinterpret_cast<float2*>(own_columns + r * 8 * kColumnStride + o * 8 + place() * 2) =
                make_float2(out[0][o][2 * r], out[0][o][2 * r + 1]);
        }
        __syncthreads();
        add_products(
            out_sum, staged_units + unit, unit_stride, staged_columns, first, last,
            [&](int r, const float(&hidden)[4]) {
              const float upper = staged_density[r], lower = staged_density[r + 4];
              density_sum[0] += hidden[0] * upper + hidden[2] * lower;
              density_sum[1] += hidden[1] * upper + hidden[3] * lower;
              density_bias_sum += upper + lower;
            },
            [&](int o, float sum) { out_bias_sum[o] += sum; });
        __syncthreads();

        Factor<kExact, 4> left[kOutTiles];
#pragma unroll
        for (int o = 0; o < kOutTiles; ++o) left[o] = left_factor<kExact>(out[0][o]);
        float feature_grad[kInTiles][4] = {};
#pragma unroll 2
        for (int n = 0; n < plan.units / 8; ++n) {
          float2* upper = reinterpret_cast<float2*>(own_units + n * 8);
          float2* lower = reinterpret_cast<float2*>(own_units + n * 8 + 8 * unit_stride);
          const float2 weights = reinterpret_cast<const float2*>(layers.density)[n * 4 + place()];
          float grad[4] = {row_grad[0] * weights.x, row_grad[0] * weights.y, row_grad[1] * weights.x,
                           row_grad[1] * weights.y};
#pragma unroll
          for (int o = 0; o < kOutTiles; ++o)
            multiply_add(grad, left[o], stored_factor(layers.out_back + (n * kOutTiles + o) * kWarp));
          grad[0] *= hidden_slope(upper->x), grad[1] *= hidden_slope(upper->y);
          grad[2] *= hidden_slope(lower->x), grad[3] *= hidden_slope(lower->y);
          *upper = make_float2(grad[0], grad[1]), *lower = make_float2(grad[2], grad[3]);
          const auto next = left_factor<kExact>(grad);
#pragma unroll
          for (int t = 0; t < kInTiles; ++t)
            multiply_add(feature_grad[t], next, stored_factor(layers.hidden_back + (n * kInTiles + t) * kWarp));
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
          for (int c = 0; c < kShare; c += 4)
            *reinterpret_cast<float4*>(own_columns + r * 8 * kColumnStride + channel(place(), c)) =
                make_float4(feature[r][c], feature[r][c + 1], feature[r][c + 2], feature[r][c + 3]);
        __syncthreads();
        add_products(
            hidden_sum, staged_units + unit, unit_stride, staged_columns, first, last,
            [&](int, const float(&grad)[4]) {
              hidden_bias_sum[0] += grad[0] + grad[2];
              hidden_bias_sum[1] += grad[1] + grad[3];
            },
            [](int, float) {});

        float point_grad[3][kRows];
        scatter<kPoint>(s, texels, plane_grads + volume * s.packed(), march.point, inside, feature_grad, point_grad);
        if constexpr (kPoint)
#pragma unroll
          for (int axis = 0; axis < 3; ++axis) {
            const float own = quad_sum(point_grad[axis]);
            origin_grad[axis] += own;
            direction_grad[axis] += own * march.distance;
            distance_grad += own * ray.direction[axis];
          }
      }
      if (kPoint && writes) ray_grads.depths[ray.index * s.samples + i] = distance_grad + nothing;
    }
    if (kPoint && writes) {
      ray_grads.leave[ray.index] = carried + nothing;
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        ray_grads.origins[ray.index * 3 + axis] = origin_grad[axis] + nothing;
        ray_grads.directions[ray.index * 3 + axis] = direction_grad[axis] + nothing;
      }
    }
  }

  float* to = partial_sums + (int64_t(blockIdx.x) * plan.parts() + part) * decoder_floats(s);
  auto whole = [](float x) {  // over the quad's rows
    x += exchanged(x, 1);
    return x + exchanged(x, 2);
  };
  float* hidden_bias = to + s.hidden * s.channels;
  float* out_weight = hidden_bias + s.hidden;
  float* out_bias = out_weight + s.outputs * s.hidden;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int own = unit + half * 8 + group();
    const float bias = whole(hidden_bias_sum[half]), weight = whole(density_sum[half]);
    if (own >= s.hidden) continue;
    if (place() == 0) hidden_bias[own] = bias, out_weight[own] = weight;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
#pragma unroll
      for (int t = 0; t < kInTiles; ++t)
        if (int c = t * 8 + place() * 2 + e; c < s.channels) to[own * s.channels + c] = hidden_sum[t][half * 2 + e];
#pragma unroll
      for (int o = 0; o < kOutTiles; ++o)
        if (int k = o * 8 + place() * 2 + e; k < features)
          out_weight[(k + 1) * s.hidden + own] = out_sum[o][half * 2 + e];
    }
  }
  const float density_bias = whole(density_bias_sum);
#pragma unroll
  for (int o = 0; o < kOutTiles; ++o) {
    const float bias = whole(out_bias_sum[o]);
    if (unit == 0 && place() == 0 && o * 8 + group() < features) out_bias[o * 8 + group() + 1] = bias;
  }
  if (unit == 0 && lane() == 0) out_bias[0] = density_bias;
}

struct DecoderGradients {
  float* tensor[4];
};

// Sum of the parts' gradients of the decoder, in their order: a warp's lanes have neighbouring numbers, its block's
// warps every kSumWarps-th part.
constexpr int kSumWarps = 8;

__global__ void sum_kernel(Sizes s, const float* partial_sums, int parts, DecoderGradients to, const int* faults) {
  const int64_t count = decoder_floats(s), index = blockIdx.x * int64_t(kWarp) + lane();
  float sum = 0.f;
  if (index < count)
    for (int part = warp(); part < parts; part += kSumWarps) sum += partial_sums[part * count + index];
  shared_memory()[threadIdx.x] = sum;
  __syncthreads();
  if (warp() || index >= count) return;
  for (int i = 1; i < kSumWarps; ++i) sum += shared_memory()[i * kWarp + lane()];
  const int64_t sizes[4] = {s.hidden * s.channels, s.hidden, s.outputs * s.hidden, s.outputs};
  int64_t at = index;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (at >= 0 && at < sizes[i]) to.tensor[i][at] = *faults ? NAN : sum;
    at -= sizes[i];
  }
}

int64_t shared_floats(const Plan& plan) {
  return layer_floats(plan.units, true) + kBlockRays * (stride(plan.units) + kColumnStride + 1);
}

}  // namespace

extern "C" {

// Floats that the backward pass needs beside its inputs and outputs.
int64_t cad_workspace(const Sizes* s, const Launch* launch) {
  const Plan plan(*s);
  return s->batch * s->packed() + plan.blocks(*s, launch->device) * plan.parts() * decoder_floats(*s);
}

int cad_unpack(const Sizes* s, const float* packed, float* planes, const Launch* launch);

// found: the gradients of planes [B, 3, C, H, W] and of the decoder's four tensors, all float32.
int cad_render_backward(const Sizes* s, const Plane* planes, const Rays* rays, const Decoder* decoder,
                        const Rendered* rendered, const Gradients* grads, float* const* found,
                        const RayGradients* ray_grads, int64_t, const Launch* launch) {
  const Plan plan(*s);
  const int64_t blocks = plan.blocks(*s, launch->device), count = decoder_floats(*s), area = s->batch * s->packed();
  float *plane_grads = launch->workspace, *partial_sums = plane_grads + area;
  if (int fault = cudaSetDevice(launch->device)) return fault;
  if (int fault = cudaMemsetAsync(plane_grads, 0, area * sizeof(float), launch->stream)) return fault;
  const auto kernel = ray_grads->origins ? backward_kernel<true> : backward_kernel<false>;
  if (int fault = run(kernel, blocks, kThreads, shared_floats(plan), launch, *s, planes, *rays, *decoder,
                      *rendered, *grads, plane_grads, partial_sums, *ray_grads, launch->faults, plan))
    return fault;
  DecoderGradients to;
  for (int i = 0; i < 4; ++i) to.tensor[i] = found[i + 1];
  if (int fault = run(sum_kernel, (count + kWarp - 1) / kWarp, kSumWarps * kWarp, kSumWarps * kWarp, launch, *s,
                      partial_sums, int(blocks) * plan.parts(), to, launch->faults))
    return fault;
  return cad_unpack(s, plane_grads, found[0], launch);
}

}  // extern "C"
