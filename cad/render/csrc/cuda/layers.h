// The decoder in shared memory, laid out as the lanes of a warp read it; the sizes that this library is compiled for.
#pragma once

#include "../call.h"
#include "warp.h"

namespace cad {

constexpr int kChannels = CAD_CHANNELS, kFeatures = CAD_FEATURES;  // room of a texel and of a ray's features
static_assert(kChannels % 16 == 0 && kFeatures % 8 == 0);
constexpr int kInTiles = kChannels / 8, kOutTiles = kFeatures / 8;  // of a matrix product
constexpr int kShare = kChannels / kQuad;                           // channels of a sample that one lane of a quad holds

using Sizes = CallSizes<kChannels>;

// Texels: float32, or half precision, of which only the bits are stored.
struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};
using Plane = CAD_PLANES;

// float32 planes are computed with as float32 is, planes of half precision in tf32 and with the GPU's own functions.
constexpr bool kExact = sizeof(Plane) == 4;

// How many channels are read at once: 16 bytes, or 8 where a texel of half precision has too few.
constexpr int kVector = sizeof(Plane) == 2 && kChannels % 32 == 0 ? 8 : 4;

// The i-th channel of a lane: a quad reads neighbouring vectors.
__device__ __forceinline__ int channel(int lane, int i) {
  return (i / kVector * kQuad + lane) * kVector + i % kVector;
}

// Right factors of matrix products, [units / 8][tiles][kWarp] pairs each; see warp.h.
struct Layers {
  int units;                                // of the hidden layer, padded by such that nothing depends on
  float2 *hidden, *out;                     // terms channels, columns units; terms units, columns features
  float2 *hidden_back, *out_back;           // terms units, columns channels; terms features, columns units
  float *hidden_bias, *density, *out_bias;  // [units], [units], [kFeatures]; density: the output weight's first row
  float density_bias;
};

// Shared memory that the layers take, in floats; a multiple of 4.
CAD_HD int layer_floats(int units, bool backward) {
  return units * ((backward ? 2 : 1) * (kChannels + kFeatures) + 2) + kFeatures;
}

// Bring the decoder from global memory, all threads of the block together; they meet before they return.
template <bool kBackward>
__device__ __forceinline__ Layers load_layers(const Sizes& s, const Decoder& decoder, int units, float* memory) {
  auto hidden_weight = [&](int unit, int c) {
    return unit < s.hidden && c < s.channels ? decoder.hidden_weight[unit * s.channels + c] : 0.f;
  };
  auto out_weight = [&](int row, int unit) {
    return unit < s.hidden && row < s.outputs ? decoder.out_weight[row * s.hidden + unit] : 0.f;
  };
  auto number = [](float x) { return kExact ? x : __uint_as_float(tf32(x)); };
  auto next = [&](int count) {
    float* found = memory;
    memory += count;
    return found;
  };
  // pair(block of eight units, tile, column, lane of the quad, which of its two terms)
  auto fill = [&](int tiles, auto pair) {
    float2* to = reinterpret_cast<float2*>(next(units * tiles * 8));
    for (int i = threadIdx.x; i < units / 8 * tiles * kWarp; i += blockDim.x) {
      int column = i % kWarp / kQuad, q = i % kQuad, tile = i / kWarp % tiles, block = i / kWarp / tiles;
      to[i] = make_float2(number(pair(block, tile, column, q, 0)), number(pair(block, tile, column, q, 1)));
    }
    return to;
  };
  Layers layers;
  layers.units = units;
  layers.hidden = fill(kInTiles, [&](int block, int tile, int column, int q, int i) {
    return hidden_weight(block * 8 + column, channel(q, tile * 2 + i));
  });
  layers.out = fill(kOutTiles, [&](int block, int tile, int column, int q, int i) {
    return out_weight(1 + tile * 8 + column, block * 8 + q * 2 + i);
  });
  if constexpr (kBackward) {
    layers.hidden_back = fill(kInTiles, [&](int block, int tile, int column, int q, int i) {
      return hidden_weight(block * 8 + q * 2 + i, channel(column / 2, tile * 2 + column % 2));
    });
    layers.out_back = fill(kOutTiles, [&](int block, int tile, int column, int q, int i) {
      return out_weight(1 + tile * 8 + q * 2 + i, block * 8 + column);
    });
  }
  layers.hidden_bias = next(units);
  layers.density = next(units);
  layers.out_bias = next(kFeatures);
  for (int i = threadIdx.x; i < units; i += blockDim.x) {
    layers.hidden_bias[i] = i < s.hidden ? decoder.hidden_bias[i] : 0.f;
    layers.density[i] = out_weight(0, i);
  }
  for (int i = threadIdx.x; i < kFeatures; i += blockDim.x)
    layers.out_bias[i] = i + 1 < s.outputs ? decoder.out_bias[i + 1] : 0.f;
  layers.density_bias = decoder.out_bias[0];
  __syncthreads();
  return layers;
}

// Lane's pair of a right factor from shared memory, where it is rounded already unless it is exact.
__device__ __forceinline__ Factor<kExact, 2> stored_factor(const float2* tile) {
  float2 pair = tile[lane()];
  if constexpr (kExact) return right_factor<kExact>(pair.x, pair.y);
  Factor<kExact, 2> right;
  right.high[0] = __float_as_uint(pair.x);
  right.high[1] = __float_as_uint(pair.y);
  return right;
}

__device__ __forceinline__ float hidden_activation(float x) {
  float tail;
  if constexpr (kExact) return softplus(x, tail);
  return fmaxf(x, 0.f) + __logf(1.f + __expf(-fabsf(x)));
}

__device__ __forceinline__ float out_activation(float x) {
  if constexpr (kExact) return logistic(x);
  return reciprocal(1.f + __expf(-x));
}

// Decode the samples that the rows of kRowTiles left factors hold, channel by channel: the lane's shares of the raw
// density's sums, without the bias, and with kOutputs the raw features. keep(block of eight units, row tile, activations).
template <bool kOutputs, int kRowTiles, class Keep>
__device__ __forceinline__ void decode(const Layers& layers, const float (&feature)[2 * kRowTiles][kShare],
                                       float (&density)[2 * kRowTiles], float (&out)[kRowTiles][kOutTiles][4],
                                       Keep keep) {
  constexpr int kChunk = 2;  // sums that do not wait for each other hide a product's latency
  const int q = place();
  Factor<kExact, 4> left[kRowTiles][kInTiles];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int t = 0; t < kInTiles; ++t) {
      const float *upper = feature[2 * m] + 2 * t, *lower = feature[2 * m + 1] + 2 * t;
      left[m][t] = left_factor<kExact>({upper[0], upper[1], lower[0], lower[1]});
    }
    density[2 * m] = density[2 * m + 1] = 0.f;
    if constexpr (kOutputs) {
#pragma unroll
      for (int o = 0; o < kOutTiles; ++o) {
        float2 bias = reinterpret_cast<const float2*>(layers.out_bias)[o * 4 + q];
        out[m][o][0] = out[m][o][2] = bias.x;
        out[m][o][1] = out[m][o][3] = bias.y;
      }
    }
  }
#pragma unroll 1
  for (int n = 0; n < layers.units / 8; n += kChunk) {
    float hidden[kChunk][kRowTiles][4];
#pragma unroll
    for (int c = 0; c < kChunk; ++c) {
      float2 bias = reinterpret_cast<const float2*>(layers.hidden_bias)[(n + c) * 4 + q];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        hidden[c][m][0] = hidden[c][m][2] = bias.x;
        hidden[c][m][1] = hidden[c][m][3] = bias.y;
      }
    }
#pragma unroll
    for (int t = 0; t < kInTiles; ++t)
#pragma unroll
      for (int c = 0; c < kChunk; ++c) {
        auto right = stored_factor(layers.hidden + ((n + c) * kInTiles + t) * kWarp);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) multiply_add(hidden[c][m], left[m][t], right);
      }
#pragma unroll
    for (int c = 0; c < kChunk; ++c) {
      float2 weight = reinterpret_cast<const float2*>(layers.density)[(n + c) * 4 + q];
      Factor<kExact, 4> next[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        auto& h = hidden[c][m];
#pragma unroll
        for (float& x : h) x = hidden_activation(x);
        density[2 * m] += h[0] * weight.x + h[1] * weight.y;
        density[2 * m + 1] += h[2] * weight.x + h[3] * weight.y;
        keep(n + c, m, h);
        next[m] = left_factor<kExact>(h);
      }
      if constexpr (kOutputs)
#pragma unroll
        for (int o = 0; o < kOutTiles; ++o) {
          auto right = stored_factor(layers.out + ((n + c) * kOutTiles + o) * kWarp);
#pragma unroll
          for (int m = 0; m < kRowTiles; ++m) multiply_add(out[m][o], next[m], right);
        }
    }
  }
}

}  // namespace cad
