// Kernel launches: what a call brings beside its inputs, and what can go wrong.
#pragma once

#include <cmath>
#include <cstdint>

#include "layers.h"

namespace cad {

// Mirrored by `_Launch` in cad/render/cuda.py.
struct Launch {
  int device;
  cudaStream_t stream;
  int* faults;       // not 0 where one of the inputs' values is not finite
  float* workspace;  // of the backward pass: cad_workspace() floats
};

// Shared memory that a block may have on every GPU since compute capability 8.0 but the smallest (8.6 and 8.9), in floats.
constexpr int64_t kSharedFloats = 99 * 256;

// Start a kernel with `shared` floats of memory for each block; returns what is wrong, or 0.
template <class... Needs, class... Gives>
int run(void (*kernel)(Needs...), int64_t blocks, int threads, int64_t shared, const Launch* launch, Gives... gives) {
  if (blocks == 0) return 0;
  if (int fault = cudaSetDevice(launch->device)) return fault;  // this library's own; cad/render/cuda.py keeps torch's
  const size_t bytes = shared * sizeof(float);
  if (bytes > 48 * 1024)
    if (int fault = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes))) return fault;
#ifdef __CUDACC__
  kernel<<<blocks, threads, bytes, launch->stream>>>(gives...);
#else
  emulated::run(kernel, blocks, threads, bytes, gives...);
#endif
  return cudaGetLastError();
}

}  // namespace cad
