// CUDA for a host compiler: as much of the runtime's interface as the kernels use, found in place
// of the toolkit's header of this name. The threads of a block are fibers, which change places at
// barriers and warp shuffles, in an order that can be chosen; blocks run one after another. CUDA's
// keywords are empty macros given on the command line (build.py), but for __shared__, which is
// thread_local: so all shared memory is in one segment, which is filled with NaN for each block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "copies.h"

struct dim3 {
  unsigned int x, y, z;
  dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1) : x(x_), y(y_), z(z_) {}
};

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
};

using cudaStream_t = struct CUstream_st*;

const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);

extern dim3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_on_host {

// Where in the source a thread waits.
struct Site {
  const char* file;
  int line;
  static Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// Runs `thread` as every thread of the grid. `kernel` names it in reports.
cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes,
                   const std::function<void()>& thread);

// Waits for all threads of the block, or for those in `mask` of the warp.
void wait_for_block(Site site);
void wait_for_warp(unsigned int mask, Site site);

// Waits for the threads in `mask` of the warp. The result is the value of the one in `lane`, or
// bytes of 0xff if that thread is not in the mask.
void exchange(unsigned int mask, const void* value, int lane, void* result, size_t bytes,
              Site site);

int lane_of_this_thread();

// Of this thread.
Copies& copies();

// Whether the fault of this number, of those in the text of the kernels, is at work: see faults.py.
bool planted(int fault);

// A number of threads or blocks, which each of some faults makes few.
template <int64_t kValue, int... kFaults>
struct Few {
  operator int64_t() const { return (planted(kFaults) || ...) ? 5 : kValue; }
};

template <typename T>
T shuffle(unsigned int mask, T value, int lane, Site site) {
  T result;
  exchange(mask, &value, lane, &result, sizeof(T), site);
  return result;
}

}  // namespace cuda_on_host

template <typename... Params>
cudaError_t cudaLaunchKernel(void (*kernel)(Params...), dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes, cudaStream_t) {
  return cuda_on_host::launch(reinterpret_cast<const void*>(kernel), grid, block, shared_bytes,
                              [=] {
                                void** argument = arguments;
                                kernel(Params(*static_cast<const Params*>(*argument++))...);
                              });
}

inline void __syncthreads(cuda_on_host::Site site = cuda_on_host::Site::here()) {
  cuda_on_host::wait_for_block(site);
}

inline void __syncwarp(unsigned int mask = 0xffffffffu,
                       cuda_on_host::Site site = cuda_on_host::Site::here()) {
  cuda_on_host::wait_for_warp(mask, site);
}

// `width` splits the warp into segments; a lane outside of the thread's segment is its own.
template <typename T>
T __shfl_sync(unsigned int mask, T value, int lane, int width = warpSize,
              cuda_on_host::Site site = cuda_on_host::Site::here()) {
  const int segment = cuda_on_host::lane_of_this_thread() & ~(width - 1);
  return cuda_on_host::shuffle(mask, value, segment + (lane & (width - 1)), site);
}

template <typename T>
T __shfl_xor_sync(unsigned int mask, T value, int lane_mask, int width = warpSize,
                  cuda_on_host::Site site = cuda_on_host::Site::here()) {
  const int self = cuda_on_host::lane_of_this_thread(), from = self ^ lane_mask;
  const bool inside = from < (self & ~(width - 1)) + width;
  return cuda_on_host::shuffle(mask, value, inside ? from : self, site);
}

template <typename T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int delta, int width = warpSize,
                   cuda_on_host::Site site = cuda_on_host::Site::here()) {
  const int self = cuda_on_host::lane_of_this_thread(), from = self + static_cast<int>(delta);
  const bool inside = from < (self & ~(width - 1)) + width;
  return cuda_on_host::shuffle(mask, value, inside ? from : self, site);
}

template <typename T>
T __shfl_up_sync(unsigned int mask, T value, unsigned int delta, int width = warpSize,
                 cuda_on_host::Site site = cuda_on_host::Site::here()) {
  const int self = cuda_on_host::lane_of_this_thread(), from = self - static_cast<int>(delta);
  const bool inside = from >= (self & ~(width - 1));
  return cuda_on_host::shuffle(mask, value, inside ? from : self, site);
}
