// The backward pass of volume rendering on a CPU: samples are computed again, nothing of the forward pass is kept but
// the rendered rays.
#include "tiles.h"

using namespace cad;

namespace {

// Sums over rays that one piece of the backward pass makes on its own; the decoder's are laid out as its factors are.
struct Sums {
  Sums(const Sizes& s, const Layers& l)
      : planes(new Lanes[s.packed() / kLanes]()),
        store(new Lanes[((s.channels + s.outputs + 1) * l.units + l.features) / kLanes + 1]()),
        hidden_weight(reinterpret_cast<float*>(store.get())),
        hidden_bias(hidden_weight + s.channels * l.units),
        density_weight(hidden_bias + l.units),
        out_weight(density_weight + l.units),
        out_bias(out_weight + (s.outputs - 1) * l.units),
        density_bias(out_bias + l.features) {}

  Memory planes, store;
  float *hidden_weight, *hidden_bias, *density_weight, *out_weight, *out_bias;  // [C][D], [D], [D], [F][D], [F]
  float* density_bias;                                                          // [kLanes]
};

// What the backward pass of a tile needs beside a block.
struct Scratch {
  explicit Scratch(const Layers& l)
      : store(new Lanes[(kRows * l.units + kLanes * l.features) / kLanes]()),
        hidden(reinterpret_cast<float*>(store.get())),
        features(hidden + kRows * l.units) {}

  Memory store;
  float *hidden, *features;  // gradients of the hidden units [kRows][D], and of the rays' features [kLanes][F]
};

// Add the gradient of the block's features (in block.features) to the planes', and where asked to the points'.
void scatter_features(const Layers& layers, const float* planes, const Block& block, float* grad, Lanes (*point)[3]) {
  for (int v = 0; v < block.steps; ++v) {
    const Corners& corners = block.corners[v];
    Lanes dot[12] = {};  // gradient . texel, where the points' gradient is asked for
    for (int lane = 0; lane < kLanes; ++lane) {
      if (!block.inside[v][lane]) continue;
      for (int c = 0; c < layers.channels; c += kLanes) {
        Lanes row = load(block.features + (v * kLanes + lane) * layers.channels + c);
#pragma GCC unroll 12
        for (int q = 0; q < 12; ++q) {
          float* to = grad + corners.offset[q][lane] + c;
          cad::store(to, load(to) + row * corners.share[q][lane]);
        }
        if (point)
          for (int q = 0; q < 12; ++q) dot[q][lane] += total(row * load(planes + corners.offset[q][lane] + c));
      }
    }
    if (!point) continue;
    for (int axis = 0; axis < 3; ++axis) point[v][axis] = Lanes{};
    for (int plane = 0; plane < 3; ++plane) {
      const Lanes* d = dot + plane * 4;
      const auto &x = corners.x[plane], &y = corners.y[plane];
      point[v][kAxes[plane][0]] += x.slope * ((d[1] - d[0]) * (1.f - y.share) + (d[3] - d[2]) * y.share);
      point[v][kAxes[plane][1]] += y.slope * ((d[2] - d[0]) * (1.f - x.share) + (d[3] - d[1]) * x.share);
    }
  }
}

// From the gradients of the raw density `raw` and of the raw radiance (in block.out) to those of all that made them;
// the gradient of the features replaces them.
void decode_backward(const Sizes& s, const Layers& layers, const Lanes* raw, Block& block, Scratch& scratch,
                     Sums& sums) {
  const int rows = block.steps * kLanes, units = layers.units;
  const float* raws = reinterpret_cast<const float*>(raw);
  add_rows(raws, kLanes, block.steps, sums.density_bias);
  add_rows(block.out, layers.features, rows, sums.out_bias);
  outer(raws, 1, 1, block.hidden, units, rows, sums.density_weight);
  outer(block.out, s.outputs - 1, layers.features, block.hidden, units, rows, sums.out_weight);
  multiply(layers.from_radiance, block.out, layers.features, rows, scratch.hidden);
  for (int row = 0; row < rows; ++row)
    for (int j = 0; j < units; j += kLanes) {
      float* slope = block.slope + row * units + j;
      Lanes grad = load(scratch.hidden + row * units + j) + raws[row] * load(layers.density + j);
      store(slope, load(slope) * grad);
    }
  add_rows(block.slope, units, rows, sums.hidden_bias);
  outer(block.features, s.channels, layers.channels, block.slope, units, rows, sums.hidden_weight);
  multiply(layers.from_hidden, block.slope, units, rows, block.features);
}

void backward_tile(const Sizes& s, const float* planes, const Rays& rays, const Layers& layers,
                   const Rendered& rendered, const Gradients& grads, const Tile& t, Block& block, Scratch& scratch,
                   Sums& sums, const RayGradients& ray_grads) {
  // d loss / d weight of a sample = weight_grad + depth_grad * (distance - far) + feature_grad . radiance, of which the
  // logistic values' part is added later.
  Lanes depth_grad = gather(t, grads.depth, 1), weight_grad = gather(t, grads.opacity, 1);
  Lanes covered = gather(t, rendered.opacity, 1), passed = 1.f - covered;
  // rest: what the samples not yet visited add to sum(weight * d loss / d weight), known from the rendered ray.
  Lanes rest = depth_grad * (gather(t, rendered.depth, 1) - s.far) + weight_grad * covered;
  for (int k = 0; k < s.outputs - 1; ++k) {
    Lanes g = gather(t, grads.features + k, s.outputs - 1);
    Lanes feature = gather(t, rendered.features + k, s.outputs - 1);
    for (int lane = 0; lane < kLanes; ++lane) scratch.features[lane * layers.features + k] = g[lane] * kRadianceScale;
    if (k < kColors) weight_grad -= g, feature -= passed, rest -= g * covered;
    weight_grad += g * kRadianceStart;
    rest += g * feature;
  }
  if (grads.weights)
    for (int64_t i = 0; i < s.samples; ++i)
      rest += gather(t, grads.weights + i, s.samples) * gather(t, rendered.weights + i, s.samples);

  Lanes thickness = {}, origin_grad[3] = {}, direction_grad[3] = {}, carried = {};  // carried: to the next sample
  for (int64_t first = 0; first < s.samples; first += kSteps) {
    bool last = first + kSteps >= s.samples;
    Lanes distance_grad[kSteps + 1] = {};
    distance_grad[0] = carried;
    auto distance = [&](int v) { return gather(t, rays.depths + first + v, s.samples); };
    if (place(s, t, s.samples - first, block, distance)) {
      read_planes(s, planes, layers, block);
      decode_density<true>(layers, block);
      decode_radiance(layers, block, block.out);
      Lanes weight[kSteps], by_weight[kSteps], after[kSteps], sigma[kSteps], sigma_slope[kSteps], arriving;
      for (int v = 0; v < block.steps; ++v) {
        sigma[v] = density(block, v, sigma_slope[v]);
        weight[v] = composite(sigma[v], block.distance[v + 1] - block.distance[v], thickness, arriving);
        after[v] = arriving - weight[v];
        float* out = block.out + v * kLanes * layers.features;
        by_weight[v] = weight_grad + depth_grad * (block.distance[v] - s.far) +
                       products(out, layers.features, scratch.features, layers.features);
        if (grads.weights) by_weight[v] += gather(t, grads.weights + first + v, s.samples);
        for (int i = 0; i < kLanes * layers.features; i += kLanes) {
          Lanes value = load(out + i), grad = load(scratch.features + i) * weight[v][i / layers.features];
          store(out + i, grad * (value * (1.f - value)));
        }
      }
      Lanes behind = {}, raw[kSteps];  // behind: sum over later samples of weight * by_weight
      for (int v = 0; v < block.steps; ++v) rest -= weight[v] * by_weight[v];
      if (!last) behind = rest;
      for (int v = block.steps - 1; v >= 0; --v) {
        Lanes thickness_grad = by_weight[v] * after[v] - behind;
        behind += weight[v] * by_weight[v];
        Lanes sigma_grad = thickness_grad * (block.distance[v + 1] - block.distance[v]);
        raw[v] = block.inside[v] ? sigma_grad * sigma_slope[v] : Lanes{};
        distance_grad[v + 1] += thickness_grad * sigma[v];
        distance_grad[v] += depth_grad * weight[v] - thickness_grad * sigma[v];
      }
      decode_backward(s, layers, raw, block, scratch, sums);
      Lanes point_grad[kSteps][3];
      scatter_features(layers, planes, block, reinterpret_cast<float*>(sums.planes.get()),
                       ray_grads.origins ? point_grad : nullptr);
      if (ray_grads.origins)
        for (int v = 0; v < block.steps; ++v)
          for (int axis = 0; axis < 3; ++axis) {
            origin_grad[axis] += point_grad[v][axis];
            direction_grad[axis] += point_grad[v][axis] * block.distance[v];
            distance_grad[v] += point_grad[v][axis] * t.direction[axis];
          }
    }
    if (ray_grads.origins) {
      for (int v = 0; v < block.steps; ++v) scatter(t, ray_grads.depths + first + v, s.samples, distance_grad[v]);
      carried = distance_grad[block.steps];
    }
  }
  if (!ray_grads.origins) return;
  scatter(t, ray_grads.leave, 1, carried);
  for (int axis = 0; axis < 3; ++axis) {
    scatter(t, ray_grads.origins + axis, 3, origin_grad[axis]);
    scatter(t, ray_grads.directions + axis, 3, direction_grad[axis]);
  }
}

// Sum up what the pieces of a volume found for its planes, to [3, C, H, W], and free their memory.
void collect_planes(const Sizes& s, std::unique_ptr<Sums>* parts, int64_t count, float* to) {
  const int64_t area = s.height * s.width, padded = s.padded();
  for (int64_t row = 0; row < 3 * s.height; ++row)
    for (int64_t x = 0; x < s.width; x += kLanes)
      for (int64_t c = 0; c < s.channels; c += kLanes) {
        const int64_t columns = std::min<int64_t>(kLanes, s.width - x);
        const int64_t rows = std::min<int64_t>(kLanes, s.channels - c);
        Lanes square[kLanes] = {};
        for (int64_t part = 0; part < count; ++part) {
          const float* from = reinterpret_cast<float*>(parts[part]->planes.get()) + (row * s.width + x) * padded + c;
          for (int64_t i = 0; i < columns; ++i) square[i] += load(from + i * padded);
        }
        transpose(square);
        float* place = to + (row / s.height * s.channels + c) * area + row % s.height * s.width + x;
        for (int64_t i = 0; i < rows; ++i) memcpy(place + i * area, &square[i], columns * sizeof(float));
      }
  for (int64_t part = 0; part < count; ++part) parts[part]->planes.reset();
}

}  // namespace

extern "C" {

// found: the gradients of planes [B, 3, C, H, W] and of the decoder's four tensors, zeros before; the rays' are written
// where a ray is visited. `pieces` parts of each volume's rays are summed apart, then in order. Returns whether the
// planes are finite; if not, what is found means nothing.
int cad_render_backward(const Sizes* sizes, const Planes* planes, const Rays* rays, const Decoder* decoder,
                        const Rendered* rendered, const Gradients* grads, float* const* found,
                        const RayGradients* ray_grads, int64_t pieces) {
  const Sizes& s = *sizes;
  const Layers layers(s, *decoder);
  Volumes volumes(s, *planes, pieces);
  std::vector<std::unique_ptr<Sums>> sums(s.batch * pieces);
  at::parallel_for(0, s.batch * pieces, 1, [&](int64_t begin, int64_t end) {
    Block block(layers);
    Scratch scratch(layers);
    for (int64_t i = begin; i < end; ++i) {
      sums[i] = std::make_unique<Sums>(s, layers);
      int64_t volume = i / pieces, part = i % pieces, start = volume * s.rays;
      const float* packed = volumes.take(volume);
      auto chosen = [&](int64_t ray) { return ray_grads->origins || rays->leave[ray] > rays->depths[ray * s.samples]; };
      for_each_tile(start + s.rays * part / pieces, start + s.rays * (part + 1) / pieces, chosen,
                    [&](const int64_t* rays_of_tile, int count) {
                      Tile t = tile(rays->origins, rays->directions, rays->leave, rays_of_tile, count);
                      backward_tile(s, packed, *rays, layers, *rendered, *grads, t, block, scratch, *sums[i],
                                    *ray_grads);
                    });
      if (volumes.give_up(volume))
        collect_planes(s, &sums[volume * pieces], pieces, found[0] + volume * 3 * s.channels * s.height * s.width);
    }
  });
  auto add = [&](float* Sums::*field, int64_t from, float& to) {
    for (const auto& part : sums) to += ((*part).*field)[from];
  };
  const int64_t units = layers.units, outputs = s.outputs - 1;
  for (int64_t j = 0; j < s.hidden; ++j) {
    for (int64_t c = 0; c < s.channels; ++c) add(&Sums::hidden_weight, c * units + j, found[1][j * s.channels + c]);
    add(&Sums::hidden_bias, j, found[2][j]);
    add(&Sums::density_weight, j, found[3][j]);
    for (int64_t k = 0; k < outputs; ++k) add(&Sums::out_weight, k * units + j, found[3][(k + 1) * s.hidden + j]);
  }
  for (int lane = 0; lane < kLanes; ++lane) add(&Sums::density_bias, lane, found[4][0]);
  for (int64_t k = 0; k < outputs; ++k) add(&Sums::out_bias, k, found[4][k + 1]);
  return volumes.sound();
}

}  // extern "C"
