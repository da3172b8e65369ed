// What a launcher is given, on every device: the structs that cad/render/call.py fills in.
#pragma once

#include <cstdint>

#include "volume.h"

namespace cad {

// The sizes of one call, mirrored by `Sizes` in cad/render/call.py; a packed texel has room for a multiple of kTexel
// channels.
template <int kTexel> struct CallSizes {
  int64_t batch, rays, samples, channels, height, width, hidden, outputs;
  float half_side, far;

  CAD_HD int64_t padded() const { return (channels + kTexel - 1) / kTexel * kTexel; }  // channels of a packed texel
  CAD_HD int64_t packed() const { return 3 * height * width * padded(); }  // floats of one volume's packed planes
};

struct Decoder {
  const float *hidden_weight, *hidden_bias, *out_weight, *out_bias;  // [D, C], [D], [1 + F, D], [1 + F]
};

struct Rays {
  const float *origins, *directions, *depths, *leave;  // [B, R, 3], [B, R, 3], [B, R, S] ascending, [B, R]
};

struct Rendered {
  const float *features, *opacity, *depth, *weights;  // [B, R, F], [B, R], [B, R], [B, R, S] or null
};

struct Gradients {
  const float *features, *opacity, *depth, *weights;  // of `Rendered`; weights may be null
};

struct RayGradients {
  float *origins, *directions, *depths, *leave;  // of `Rays`; all null where rays need none
};

}  // namespace cad
