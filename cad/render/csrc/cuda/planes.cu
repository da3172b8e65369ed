// Planes on their way into a kernel and back: texel by texel, neighbouring channels side by side.
#include "launch.h"
#include "samples.h"

using namespace cad;

namespace {

constexpr int kThreads = 256, kTexels = 32;  // of a row of texels that a block takes at once
constexpr int kRowLength = kTexels + 1;      // of the block's table, so that columns lie in different banks
constexpr int kTable = (kChannels * kRowLength * sizeof(Plane) + 3) / 4;  // in floats

struct Strides {
  int64_t of[5];  // of planes [B, 3, C, H, W]
};

// Where the block is: texels [first, last) of the row blockIdx.y of all rows, [B, 3, H].
struct Row {
  int64_t row, first;
  int count;

  __device__ __forceinline__ Row(const Sizes& s, int64_t pieces)
      : row(blockIdx.x / pieces), first(blockIdx.x % pieces * kTexels), count(kTexels) {
    if (first + count > s.width) count = int(s.width - first);
  }
};

CAD_HD int64_t pieces_of_a_row(const Sizes& s) { return (s.width + kTexels - 1) / kTexels; }

__device__ __forceinline__ bool finite(float x) { return x * 0.f == 0.f; }

__global__ void __launch_bounds__(kThreads)
    pack_kernel(Sizes s, const Plane* planes, Strides strides, Plane* packed, int* faults) {
  const Row at(s, pieces_of_a_row(s));
  const int64_t volume = at.row / (3 * s.height), plane = at.row / s.height % 3, y = at.row % s.height;
  const Plane* from = planes + volume * strides.of[0] + plane * strides.of[1] + y * strides.of[3];
  Plane* table = reinterpret_cast<Plane*>(shared_memory());  // [kChannels][kRowLength]
  const bool by_channel = strides.of[2] < strides.of[4];     // how neighbouring threads read neighbouring numbers
  bool sound = true;
  for (int i = threadIdx.x; i < kChannels * kTexels; i += kThreads) {
    const int c = by_channel ? i % kChannels : i / kTexels, x = by_channel ? i / kChannels : i % kTexels;
    Plane value = {};
    if (c < s.channels && x < at.count) value = from[c * strides.of[2] + (at.first + x) * strides.of[4]];
    sound = sound && finite(number(value));
    table[c * kRowLength + x] = value;
  }
  if (!sound) *faults = 1;
  __syncthreads();
  constexpr int kAtOnce = 16 / sizeof(Plane);
  Plane* to = packed + (at.row * s.width + at.first) * kChannels;
  for (int i = threadIdx.x * kAtOnce; i < at.count * kChannels; i += kThreads * kAtOnce) {
    Plane values[kAtOnce];
#pragma unroll
    for (int e = 0; e < kAtOnce; ++e) values[e] = table[(i + e) % kChannels * kRowLength + (i + e) / kChannels];
    float4 whole;
    memcpy(&whole, values, sizeof whole);
    *reinterpret_cast<float4*>(to + i) = whole;
  }
}

__global__ void __launch_bounds__(kThreads)
    unpack_kernel(Sizes s, const float* packed, float* planes, const int* faults) {
  const Row at(s, pieces_of_a_row(s));
  const float *from = packed + (at.row * s.width + at.first) * kChannels, nothing = *faults ? NAN : 0.f;
  float* table = shared_memory();
  for (int i = threadIdx.x; i < at.count * kChannels; i += kThreads)
    table[i % kChannels * kRowLength + i / kChannels] = from[i] + nothing;
  __syncthreads();
  float* to = planes + (at.row / s.height * s.channels * s.height + at.row % s.height) * s.width + at.first;
  for (int i = threadIdx.x; i < s.channels * kTexels; i += kThreads) {
    const int c = i / kTexels, x = i % kTexels;
    if (x < at.count) to[c * s.height * s.width + x] = table[c * kRowLength + x];
  }
}

// Tensors of which all values must be finite: four of the rays, four of the decoder.
struct Inputs {
  const float* tensor[8];
  int64_t size[8];
};

__global__ void __launch_bounds__(kThreads) check_kernel(Inputs inputs, int* faults) {
  bool sound = true;
#pragma unroll
  for (int t = 0; t < 8; ++t)
    for (int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x; i < inputs.size[t]; i += gridDim.x * int64_t(kThreads))
      sound = sound && finite(inputs.tensor[t][i]);
  if (!sound) *faults = 1;
}

}  // namespace

extern "C" {

int64_t cad_padded(const Sizes* s) { return s->padded(); }

// What a fault's number means.
const char* cad_fault(int fault) { return cudaGetErrorString(static_cast<cudaError_t>(fault)); }

// faults become 1 where a value of the rays or of the decoder is not finite, else they stay.
int cad_check(const Sizes* s, const Rays* rays, const Decoder* decoder, const Launch* launch) {
  const int64_t count = s->batch * s->rays;
  const Inputs inputs = {{rays->origins, rays->directions, rays->depths, rays->leave, decoder->hidden_weight,
                          decoder->hidden_bias, decoder->out_weight, decoder->out_bias},
                         {count * 3, count * 3, count * s->samples, count, s->hidden * s->channels, s->hidden,
                          s->outputs * s->hidden, s->outputs}};
  const int64_t most = 1024, needed = (count * s->samples + kThreads) / kThreads;
  return run(check_kernel, needed < most ? needed : most, kThreads, 0, launch, inputs, launch->faults);
}

// planes [B, 3, C, H, W] with these strides to [B, 3, H, W, padded C]; faults become 1 where any input is not finite.
int cad_pack(const Sizes* s, const Plane* planes, const int64_t* strides, Plane* packed, const Rays* rays,
             const Decoder* decoder, const Launch* launch) {
  if (int fault = cudaSetDevice(launch->device)) return fault;
  if (int fault = cudaMemsetAsync(launch->faults, 0, sizeof(int), launch->stream)) return fault;
  Strides given;
  for (int i = 0; i < 5; ++i) given.of[i] = strides[i];
  if (int fault = run(pack_kernel, s->batch * 3 * s->height * pieces_of_a_row(*s), kThreads, kTable, launch, *s, planes,
                      given, packed, launch->faults))
    return fault;
  return cad_check(s, rays, decoder, launch);
}

int cad_unpack(const Sizes* s, const float* packed, float* planes, const Launch* launch) {
  return run(unpack_kernel, s->batch * 3 * s->height * pieces_of_a_row(*s), kThreads, kChannels * kRowLength, launch, *s,
             packed, planes, launch->faults);
}

}  // extern "C"
