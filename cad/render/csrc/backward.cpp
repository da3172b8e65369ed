// The backward pass of volume rendering on a CPU: samples are computed again, nothing of the forward pass is kept but
// the rendered rays.
#include <cmath>
#include <vector>

#include "tiles.h"

using namespace cad;

namespace {

// Sums over rays that one piece of the backward pass makes on its own.
struct Sums {
  explicit Sums(const Sizes& s)
      : planes(s.packed(), 0.f),
        store(new Lanes[s.hidden * (s.channels + 1) + s.outputs * (s.hidden + 1)]()),
        hidden_weight(store.get()),
        hidden_bias(hidden_weight + s.hidden * s.channels),
        out_weight(hidden_bias + s.hidden),
        out_bias(out_weight + s.outputs * s.hidden) {}

  std::vector<float> planes;
  Memory store;
  Lanes *hidden_weight, *hidden_bias, *out_weight, *out_bias;
};

struct Gradients {
  const float *features, *opacity, *depth, *weights;  // of the outputs; weights may be null
};

struct Rendered {
  const float *features, *opacity, *depth, *weights;
};

struct RayGradients {
  float *origins, *directions, *depths, *leave;  // all null where rays need none
};

// Add the gradient of the block's features (in block.features) to the planes', and where asked to the points'.
void scatter_features(const Sizes& s, const float* planes, Block& block, float* grad, Lanes (*point)[3]) {
  const int padded = s.padded();
  float* rows = reinterpret_cast<float*>(block.rows.get());
  for (int v = 0; v < block.steps; ++v) {
    const Corners& corners = block.corners[v];
    for (int c = 0; c < padded; c += kLanes) {
      Lanes square[kLanes];
      for (int i = 0; i < kLanes; ++i)
        square[i] = c + i < s.channels ? block.features[(c + i) * kSteps + v] : Lanes{};
      transpose(square);
      for (int lane = 0; lane < kLanes; ++lane) cad::store(rows + lane * padded + c, square[lane]);
    }
    Lanes dot[12] = {};  // gradient . texel, where the points' gradient is asked for
    for (int lane = 0; lane < kLanes; ++lane) {
      if (!block.inside[v][lane]) continue;
      for (int c = 0; c < padded; c += kLanes) {
        Lanes row = load(rows + lane * padded + c);
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

struct Transposed {
  std::vector<float> hidden_weight, out_weight;  // [C, D] and [D, 1 + F]

  Transposed(const Sizes& s, const Decoder& d) : hidden_weight(s.hidden * s.channels), out_weight(s.hidden * s.outputs) {
    for (int64_t j = 0; j < s.hidden; ++j) {
      for (int64_t c = 0; c < s.channels; ++c) hidden_weight[c * s.hidden + j] = d.hidden_weight[j * s.channels + c];
      for (int64_t k = 0; k < s.outputs; ++k) out_weight[j * s.outputs + k] = d.out_weight[k * s.hidden + j];
    }
  }
};

void backward_tile(const Sizes& s, const float* planes, const Rays& rays, const Decoder& decoder,
                   const Transposed& transposed, const Rendered& rendered, const Gradients& grads, const Tile& t,
                   Block& block, Lanes* feature_grad, Sums& sums, const RayGradients& ray_grads) {
  // d loss / d weight of a sample = weight_grad + depth_grad * (distance - far) + feature_grad . radiance.
  Lanes depth_grad = gather(t, grads.depth, 1), weight_grad = gather(t, grads.opacity, 1);
  Lanes covered = gather(t, rendered.opacity, 1), passed = 1.f - covered;
  // rest: what the samples not yet visited add to sum(weight * d loss / d weight), known from the rendered ray.
  Lanes rest = depth_grad * (gather(t, rendered.depth, 1) - s.far) + weight_grad * covered;
  for (int k = 0; k < s.outputs - 1; ++k) {
    Lanes g = feature_grad[k] = gather(t, grads.features + k, s.outputs - 1);
    Lanes feature = gather(t, rendered.features + k, s.outputs - 1);
    if (k < kColors) weight_grad -= g, feature -= passed, rest -= g * covered;
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
    if (place(s, rays, t, first, block)) {
      read_planes(s, planes, block);
      decode<true>(s, decoder, s.outputs, block);
      Lanes weight[kSteps], by_weight[kSteps], after[kSteps], sigma[kSteps], sigma_slope[kSteps], arriving;
      for (int v = 0; v < block.steps; ++v) {
        sigma[v] = density(block, v, sigma_slope[v]);
        weight[v] = composite(sigma[v], block.distance[v + 1] - block.distance[v], thickness, arriving);
        after[v] = arriving - weight[v];
        by_weight[v] = weight_grad + depth_grad * (block.distance[v] - s.far);
        if (grads.weights) by_weight[v] += gather(t, grads.weights + first + v, s.samples);
      }
      for (int k = 1; k < s.outputs; ++k) {
        Lanes g = feature_grad[k - 1];
        for_steps(block.steps, [&](int v, auto share) {
          auto out = share, sum = share, grad = share;
          spread(g, grad);
          read(weight + v, share);
          read(by_weight + v, sum);
          read(block.out + k * kSteps + v, out);
          auto logit = logistic(out);
          write(by_weight + v, sum + grad * radiance(logit));
          write(block.out + k * kSteps + v, grad * share * radiance_slope(logit));
        });
      }
      Lanes behind = {};  // sum over later samples of weight * by_weight
      for (int v = 0; v < block.steps; ++v) rest -= weight[v] * by_weight[v];
      if (!last) behind = rest;
      for (int v = block.steps - 1; v >= 0; --v) {
        Lanes thickness_grad = by_weight[v] * after[v] - behind;
        behind += weight[v] * by_weight[v];
        Lanes sigma_grad = thickness_grad * (block.distance[v + 1] - block.distance[v]);
        block.out[v] = block.inside[v] ? sigma_grad * sigma_slope[v] : Lanes{};
        distance_grad[v + 1] += thickness_grad * sigma[v];
        distance_grad[v] += depth_grad * weight[v] - thickness_grad * sigma[v];
      }
      add_up(block.out, s.outputs, block.steps, sums.out_bias);
      outer(block.out, s.outputs, block.hidden, s.hidden, block.steps, sums.out_weight);
      multiply(transposed.out_weight.data(), 0, s.hidden, s.outputs, block.out, block.steps,
               [&](int j, int v, auto sum) {
                 auto slope = sum;
                 read(block.slope + j * kSteps + v, slope);
                 write(block.slope + j * kSteps + v, slope * sum);
               });
      add_up(block.slope, s.hidden, block.steps, sums.hidden_bias);
      outer(block.slope, s.hidden, block.features, s.channels, block.steps, sums.hidden_weight);
      multiply(transposed.hidden_weight.data(), 0, s.channels, s.hidden, block.slope, block.steps,
               [&](int c, int v, auto sum) { write(block.features + c * kSteps + v, sum); });
      Lanes point_grad[kSteps][3];
      scatter_features(s, planes, block, sums.planes.data(), ray_grads.origins ? point_grad : nullptr);
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

}  // namespace

extern "C" {

// found: the gradients of planes [B, 3, C, H, W] and of the decoder's four tensors; they are overwritten, the rays' are so
// where a ray is visited. `pieces` parts of each volume's rays are summed apart, then in order.
void cad_render_backward(const Sizes* sizes, const float* planes, const Rays* rays, const Decoder* decoder,
                         const Rendered* rendered, const Gradients* grads, float* const* found,
                         const RayGradients* ray_grads, int64_t pieces) {
  const Sizes& s = *sizes;
  const Transposed transposed(s, *decoder);
  std::vector<std::unique_ptr<Sums>> sums(s.batch * pieces);
  at::parallel_for(0, s.batch * pieces, 1, [&](int64_t begin, int64_t end) {
    Block block(s);
    Memory feature_grad(new Lanes[s.outputs]);
    for (int64_t i = begin; i < end; ++i) {
      sums[i] = std::make_unique<Sums>(s);
      int64_t volume = i / pieces, part = i % pieces, start = volume * s.rays;
      for_each_tile(s, *rays, start + s.rays * part / pieces, start + s.rays * (part + 1) / pieces,
                    ray_grads->origins != nullptr, [&](const Tile& t) {
                      backward_tile(s, planes + volume * s.packed(), *rays, *decoder, transposed, *rendered, *grads, t,
                                    block, feature_grad.get(), *sums[i], *ray_grads);
                    });
    }
  });
  const int64_t area = s.height * s.width, padded = s.padded();
  at::parallel_for(0, s.batch * 3 * s.height, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      int64_t volume = row / (3 * s.height), inside = row % (3 * s.height);
      float* to = found[0] + (volume * 3 + inside / s.height) * s.channels * area + inside % s.height * s.width;
      for (int64_t c = 0; c < s.channels; ++c)
        for (int64_t x = 0; x < s.width; ++x) {
          float sum = 0.f;
          for (int64_t part = 0; part < pieces; ++part)
            sum += sums[volume * pieces + part]->planes[(inside * s.width + x) * padded + c];
          to[c * area + x] = sum;
        }
    }
  });
  auto collect = [&](Lanes* Sums::*field, int64_t count, float* to) {
    for (int64_t i = 0; i < count; ++i) {
      Lanes sum = {};
      for (const auto& part : sums) sum += ((*part).*field)[i];
      to[i] = total(sum);
    }
  };
  collect(&Sums::hidden_weight, s.hidden * s.channels, found[1]);
  collect(&Sums::hidden_bias, s.hidden, found[2]);
  collect(&Sums::out_weight, s.outputs * s.hidden, found[3]);
  collect(&Sums::out_bias, s.outputs, found[4]);
}

}  // extern "C"
