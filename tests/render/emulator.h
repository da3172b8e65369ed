// Runs CUDA kernels on a CPU, for tests: what csrc/cuda/ needs of CUDA, one block after the other, each thread a
// coroutine that gives way only where it has to wait for others. Which warp runs, and how far, is drawn each time, so
// that a missing barrier shows; shared memory starts as NaN; lanes that meet in different operations, a block that
// waits for ever, writes behind the shared memory and numbers that are not tf32 in a matrix product end the process.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

namespace cad::emulated {

[[noreturn]] inline void fail(const char* what) {
  fprintf(stderr, "emulator: %s (block %u, thread %u)\n", what, blockIdx.x, threadIdx.x);
  abort();
}

constexpr int kLanes = 32;
constexpr size_t kSharedBytes = 227 * 1024, kGuardBytes = 1024, kStackBytes = 256 * 1024;
alignas(16) inline char shared[kSharedBytes + kGuardBytes];
inline float* shared_memory() { return reinterpret_cast<float*>(shared); }

// Threads that meet: what each brings, and what each gets once the last one has come.
struct Meeting {
  int arrived = 0, operation = 0;
  unsigned generation = 0;
  alignas(16) char brought[kLanes][64], got[kLanes][64];
};

struct Thread {
  ucontext_t start;
  jmp_buf state;
  bool begun, done;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Meeting> warps;
  unsigned alive, waiting, generation;
  bool vote, voted, moved;  // moved: a thread went on since the scheduler last looked
  jmp_buf scheduler;
  void (*body)(const void*);
  const void* arguments;
};
inline Block* block;

inline void wait() {
  if (!_setjmp(block->threads[threadIdx.x].state)) _longjmp(block->scheduler, 1);
}

// The last one opens the barrier.
inline void open_barrier() {
  block->waiting = 0;
  block->voted = block->vote;
  block->vote = false;
  ++block->generation;
  block->moved = true;
}

inline bool barrier(bool vote) {
  unsigned generation = block->generation;
  block->vote |= vote;
  if (++block->waiting == block->alive)
    open_barrier();
  else
    while (generation == block->generation) wait();
  return block->voted;
}

// combine(all lanes' `mine`, all lanes' results) runs once, when the whole warp is here.
template <class Out, class In, class Combine> Out together(int operation, const In& mine, Combine combine) {
  static_assert(sizeof(In) <= 64 && sizeof(Out) <= 64);
  const int lane = threadIdx.x % kLanes;
  Meeting& meeting = block->warps[threadIdx.x / kLanes];
  if (meeting.arrived && meeting.operation != operation) fail("lanes of a warp meet in different operations");
  meeting.operation = operation;
  memcpy(meeting.brought[lane], &mine, sizeof mine);
  if (++meeting.arrived == kLanes) {
    combine([&](int i) -> const In& { return *reinterpret_cast<const In*>(meeting.brought[i]); },
            [&](int i) -> Out& { return *reinterpret_cast<Out*>(meeting.got[i]); });
    meeting.arrived = 0;
    ++meeting.generation;
    block->moved = true;
  } else {
    for (unsigned generation = meeting.generation; generation == meeting.generation;) wait();
  }
  Out out;
  memcpy(&out, meeting.got[lane], sizeof out);
  return out;
}

inline void start() {
  block->body(block->arguments);
  block->threads[threadIdx.x].done = true;
  block->moved = true;
  if (--block->alive && block->waiting == block->alive) open_barrier();
  _longjmp(block->scheduler, 1);
}

// Let a thread run until it has to wait.
inline void resume(unsigned index) {
  Thread& thread = block->threads[index];
  if (thread.done) return;
  threadIdx.x = index;
  if (_setjmp(block->scheduler)) return;
  if (thread.begun) _longjmp(thread.state, 1);
  thread.begun = block->moved = true;
  getcontext(&thread.start);
  thread.start.uc_stack.ss_sp = thread.stack.get();
  thread.start.uc_stack.ss_size = kStackBytes;
  thread.start.uc_link = nullptr;
  makecontext(&thread.start, start, 0);
  setcontext(&thread.start);
}

inline void run_block(unsigned threads, size_t bytes, std::mt19937& draws) {
  if (bytes > kSharedBytes) fail("too much shared memory");
  memset(shared, 0xff, sizeof shared);  // as floats, NaN
  block->alive = threads;
  block->waiting = block->generation = 0;
  block->vote = block->voted = false;
  block->warps.assign(threads / kLanes, Meeting());
  for (unsigned i = 0; i < threads; ++i) block->threads[i].begun = block->threads[i].done = false;
  std::vector<unsigned> order(threads / kLanes);
  std::iota(order.begin(), order.end(), 0u);
  while (block->alive) {
    std::shuffle(order.begin(), order.end(), draws);
    bool idle = true;
    for (unsigned warp : order) {
      const bool far = draws() % 2;  // as far as the warp gets alone, else until each of its lanes has to wait once
      do {
        block->moved = false;
        for (unsigned i = 0; i < kLanes; ++i) resume(warp * kLanes + i);
        idle &= !block->moved;
      } while (far && block->moved);
    }
    if (idle) fail("the block waits for ever");
  }
  for (size_t i = bytes; i < bytes + kGuardBytes; ++i)
    if (shared[i] != char(0xff)) fail("written behind the shared memory");
}

template <class... Needs, class... Gives>
void run(void (*kernel)(Needs...), int64_t blocks, int threads, size_t bytes, Gives... gives) {
  static std::mt19937 draws(0);
  static Block all;
  block = &all;
  if (threads % kLanes) fail("a warp that is not whole");
  if (all.threads.size() < size_t(threads)) all.threads = std::vector<Thread>(threads);
  auto call = [&] { kernel(gives...); };
  all.arguments = &call;
  all.body = [](const void* given) { (*static_cast<const decltype(call)*>(given))(); };
  blockDim.x = threads;
  gridDim.x = unsigned(blocks);
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) run_block(threads, bytes, draws);
}

inline uint32_t bits(float x) {
  uint32_t found;
  memcpy(&found, &x, sizeof found);
  return found;
}
inline float number_of(uint32_t bits) {
  float found;
  memcpy(&found, &bits, sizeof found);
  return found;
}

inline uint32_t tf32(float x) { return x == x ? (bits(x) + 0x1000u) & 0xffffe000u : 0x7fffe000u; }

inline float number(uint16_t bits) {
  _Float16 found;
  memcpy(&found, &bits, sizeof found);
  return found;
}

// A sum as tensor cores round it: towards zero, but to infinity where it is too large.
inline float truncated(double x) {
  const float nearest = float(x);
  return std::isfinite(nearest) && std::fabs(nearest) > std::fabs(x) ? std::nextafterf(nearest, 0.f) : nearest;
}

// mma.sync.m16n8k8 with the fragments' layout of the PTX manual.
inline void multiply_add(float (&sum)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]) {
  struct Given {
    float sum[4];
    uint32_t left[4], right[2];
  } mine;
  struct Found {
    float sum[4];
  };
  memcpy(mine.sum, sum, sizeof mine.sum);
  memcpy(mine.left, left, sizeof mine.left);
  memcpy(mine.right, right, sizeof mine.right);
  const Found found = together<Found>(1, mine, [](auto brought, auto got) {
    float a[16][8], b[8][8];
    for (int i = 0; i < kLanes; ++i) {
      const Given& given = brought(i);
      const int g = i / 4, q = i % 4;
      for (uint32_t x : given.left) if (x & 0x1fffu) fail("the left factor is not tf32");
      for (uint32_t x : given.right) if (x & 0x1fffu) fail("the right factor is not tf32");
      a[g][q] = number_of(given.left[0]), a[g + 8][q] = number_of(given.left[1]);
      a[g][q + 4] = number_of(given.left[2]), a[g + 8][q + 4] = number_of(given.left[3]);
      b[q][g] = number_of(given.right[0]), b[q + 4][g] = number_of(given.right[1]);
    }
    double product[16][8] = {};
    for (int row = 0; row < 16; ++row)
      for (int k = 0; k < 8; ++k)
        for (int column = 0; column < 8; ++column) product[row][column] += double(a[row][k]) * b[k][column];
    for (int i = 0; i < kLanes; ++i)
      for (int e = 0; e < 4; ++e)
        got(i).sum[e] = truncated(brought(i).sum[e] + product[i / 4 + e / 2 * 8][i % 4 * 2 + e % 2]);
  });
  memcpy(sum, found.sum, sizeof found.sum);
}

}  // namespace cad::emulated

inline uint32_t __float_as_uint(float x) { return cad::emulated::bits(x); }
inline float __uint_as_float(uint32_t bits) { return cad::emulated::number_of(bits); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }

inline void __syncthreads() { cad::emulated::barrier(false); }
inline int __syncthreads_or(int vote) { return cad::emulated::barrier(vote); }

inline int __any_sync(unsigned, int vote) {
  return cad::emulated::together<int>(2, vote, [](auto brought, auto got) {
    int found = 0;
    for (int i = 0; i < cad::emulated::kLanes; ++i) found |= brought(i) != 0;
    for (int i = 0; i < cad::emulated::kLanes; ++i) got(i) = found;
  });
}

template <class T> T __shfl_sync(unsigned, T x, int from, int width) {
  struct Given {
    T x;
    int from;
  };
  return cad::emulated::together<T>(3, Given{x, from}, [width](auto brought, auto got) {
    for (int i = 0; i < cad::emulated::kLanes; ++i) got(i) = brought(i / width * width + brought(i).from % width).x;
  });
}

inline float __shfl_xor_sync(unsigned, float x, int distance) {
  return cad::emulated::together<float>(4, x, [distance](auto brought, auto got) {
    for (int i = 0; i < cad::emulated::kLanes; ++i) got(i) = brought(i ^ distance);
  });
}

inline void atomicOr(int* to, int x) { *to |= x; }
inline void atomicAdd(float4* to, float4 x) {
  to->x += x.x;
  to->y += x.y;
  to->z += x.z;
  to->w += x.w;
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
enum { cudaDevAttrMultiProcessorCount, cudaFuncAttributeMaxDynamicSharedMemorySize };
inline int cudaGetDevice(int* device) { return *device = 0; }
inline int cudaSetDevice(int) { return 0; }
inline int cudaDeviceGetAttribute(int* value, int, int) {
  *value = 1;
  return 0;
}
template <class Kernel> int cudaFuncSetAttribute(Kernel*, int, int) { return 0; }
inline int cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  memset(to, value, bytes);
  return 0;
}
inline int cudaGetLastError() { return 0; }
inline const char* cudaGetErrorString(cudaError_t) { return "an emulated fault"; }
