// Where in a volume density can be above a threshold, texel cell by texel cell: an upper bound, not samples.
//
// Within a cell between neighbouring texel centres every plane is bilinear, so the summed features, and with them each
// hidden unit before its activation, are interpolated between the cell's eight corners. softplus is convex: what units
// of positive weight add to the raw density, and what the tangents of the others at the cell's centre say they add at
// most, is convex as well, hence largest at a corner. Only by the tangents does the bound exceed the largest density.
#include <vector>

#include "tiles.h"

using namespace cad;

namespace {

// planes: hidden units before their activation, as far as each plane makes them: [3][texels + 1][units][pitch]. The
// last texel is repeated, pitch is a multiple of kLanes greater than texels, the units of positive weight come first,
// one vector of floats lies behind all. Mirrored by `_Field` in cad/render/inference.py.
struct Field {
  const float *planes, *weights;  // weights: of the units in the raw density
  int64_t texels, pitch, units, positive;
  float bias;

  const float* row(int64_t plane, int64_t y) const { return planes + (plane * (texels + 1) + y) * units * pitch; }
};

// What the units of positive weight add to the raw density at the texel centres of depth z, [texels + 1][pitch].
void add_positive(const Field& f, int64_t z, float* found) {
  for (int64_t y = 0; y <= f.texels; ++y) {
    const float *xy = f.row(0, y), *xz = f.row(1, z), *yz = f.row(2, z) + y;
    for (int64_t x = 0; x < f.pitch; x += kLanes) {
      Lanes sum = {}, tail;
      for (int64_t unit = 0; unit < f.positive; ++unit) {
        Lanes raw = load(xy + unit * f.pitch + x) + (load(xz + unit * f.pitch + x) + yz[unit * f.pitch]);
        sum += f.weights[unit] * softplus(raw, tail);
      }
      store(found + y * f.pitch + x, sum);
    }
  }
}

// Bounds of the raw density in kLanes cells from (x, y, z) on; positive: `add_positive` of z and z + 1.
Lanes bound(const Field& f, int64_t x, int64_t y, int64_t z, const float* const (&positive)[2]) {
  Lanes xy[2][2] = {}, xz[2][2] = {}, yz[2][2] = {}, constant = {};  // the linear part: [second axis][first axis]
  for (int64_t unit = f.positive; unit < f.units; ++unit) {
    const int64_t at = unit * f.pitch;
    Lanes a[2][2], b[2][2], c[2][2], centre = {}, tail;
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) {
        a[i][j] = load(f.row(0, y + i) + at + x + j);
        b[i][j] = load(f.row(1, z + i) + at + x + j);
        c[i][j] = every<Lanes>(f.row(2, z + i)[at + y + j]);
        centre += a[i][j] + b[i][j] + c[i][j];
      }
    centre = centre * 0.25f;
    Lanes value = softplus(centre, tail), slope = logistic(centre, tail) * f.weights[unit];
    constant += value * f.weights[unit] - slope * centre;
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) {
        xy[i][j] += slope * a[i][j];
        xz[i][j] += slope * b[i][j];
        yz[i][j] += slope * c[i][j];
      }
  }
  Lanes highest = {}, nothing = {};  // nothing: 0, or NaN where a corner is
  for (int k = 0; k < 2; ++k)
    for (int j = 0; j < 2; ++j)
      for (int i = 0; i < 2; ++i) {
        Lanes corner = load(positive[k] + (y + j) * f.pitch + x + i) + (xy[j][i] + (xz[k][i] + yz[k][j]));
        highest = k + j + i ? larger(highest, corner) : corner;
        nothing += corner * 0.f;
      }
  return highest + nothing + constant + f.bias;
}

}  // namespace

extern "C" {

// Set the bits of blocks of 2^shift cells along each axis where the raw density may exceed `limit`: side^3, x fastest.
void cad_occupancy(const Field* field, float limit, int64_t shift, int64_t side, int32_t* bits) {
  const Field& f = *field;
  const int64_t block = 1 << shift;
  std::vector<char> found(side * side * side);
  at::parallel_for(0, side, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> slabs[2];
    for (auto& slab : slabs) slab.resize((f.texels + 1) * f.pitch + kLanes);
    const int64_t last = std::min(end * block, f.texels);
    add_positive(f, begin * block, slabs[0].data());
    for (int64_t z = begin * block; z < last; ++z) {
      add_positive(f, z + 1, slabs[1].data());
      const float* const positive[2] = {slabs[0].data(), slabs[1].data()};
      for (int64_t y = 0; y < f.texels; ++y)
        for (int64_t x = 0; x < f.texels; x += kLanes) {
          Lanes highest = bound(f, x, y, z, positive);
          for (int lane = 0; lane < kLanes && x + lane < f.texels; ++lane)
            if (!(highest[lane] <= limit))  // NaN is not known to be empty
              found[((z >> shift) * side + (y >> shift)) * side + ((x + lane) >> shift)] = 1;
        }
      slabs[0].swap(slabs[1]);
    }
  });
  for (int64_t i = 0; i < side * side * side; ++i) bits[i >> 5] |= static_cast<uint32_t>(found[i]) << (i & 31);
}

}  // extern "C"
