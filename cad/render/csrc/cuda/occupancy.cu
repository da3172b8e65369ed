// Where in a volume density can be above a threshold: the bound of csrc/occupancy.cpp, a thread for each texel cell.
#include "launch.h"
#include "samples.h"

using namespace cad;

namespace {

constexpr int kThreads = 256;

// units: hidden units before their activation, as far as each plane makes them, [3][units][texels][texels].
__global__ void __launch_bounds__(kThreads)
    occupancy_kernel(Sizes s, const float* units, Decoder decoder, float limit, int shift, int side, int32_t* bits) {
  const int64_t cell = blockIdx.x * int64_t(kThreads) + threadIdx.x, area = s.width * s.width;
  if (cell >= area * s.width) return;
  const int size = int(s.width), low[3] = {int(cell % size), int(cell / size % size), int(cell / area)};
  int at[3][2];  // the texel centres around the cell along each axis, of which the last is repeated
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) at[axis][0] = low[axis], at[axis][1] = smaller(low[axis] + 1, size - 1);

  // Raw density at most, at the corners: x is higher at odd ones, y at those with 2, z at those with 4.
  float bound[8] = {};
  for (int unit = 0; unit < s.hidden; ++unit) {
    float part[3][2][2], raw[8], centre = 0.f, tail;
#pragma unroll
    for (int plane = 0; plane < 3; ++plane) {
      const float* own = units + (plane * s.hidden + unit) * area;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        part[plane][i / 2][i % 2] = own[at[down(plane)][i / 2] * size + at[across(plane)][i % 2]];
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int x = i % 2, y = i / 2 % 2, z = i / 4;
      raw[i] = part[0][y][x] + part[1][z][x] + part[2][z][y];
      centre += raw[i] * 0.125f;
    }
    const float weight = decoder.out_weight[unit];
    if (weight > 0.f) {
#pragma unroll
      for (int i = 0; i < 8; ++i) bound[i] += weight * softplus(raw[i], tail);
    } else {
      const float value = softplus(centre, tail), slope = logistic(centre, tail);
#pragma unroll
      for (int i = 0; i < 8; ++i) bound[i] += weight * (value + slope * (raw[i] - centre));
    }
  }
  bool empty = true;
#pragma unroll
  for (int i = 0; i < 8; ++i) empty = empty && bound[i] + decoder.out_bias[0] <= limit;  // NaN is not known to be empty
  if (empty) return;
  const int place = ((low[2] >> shift) * side + (low[1] >> shift)) * side + (low[0] >> shift);
  atomicOr(bits + (place >> 5), int(1u << (place & 31)));
}

}  // namespace

extern "C" {

// Set the bits of blocks of 2^shift cells along each axis where the raw density may exceed `limit`: side^3, x fastest.
int cad_occupancy(const Sizes* s, const float* units, const Decoder* decoder, float limit, int64_t shift, int64_t side,
                  int32_t* bits, const Launch* launch) {
  const int64_t cells = s->width * s->width * s->width;
  return run(occupancy_kernel, (cells + kThreads - 1) / kThreads, kThreads, 0, launch, *s, units, *decoder, limit,
             int(shift), int(side), bits);
}

}  // extern "C"
