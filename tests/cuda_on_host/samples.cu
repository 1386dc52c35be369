// Kernels that try the runtime itself: test_cuda_on_host.py knows what each must do.
#include <stdexcept>
#include <string>

#include "cuda_runtime_api.h"
#include "runtime.h"

namespace cuda_on_host {

// Each thread's sum over its warp of twice the lane, by every kind of shuffle; -1 where they
// differ.
__global__ void shuffle_kernel(float* out) {
  const int lane = static_cast<int>(threadIdx.x) % warpSize;
  const unsigned int all = 0xffffffffu;
  float butterfly = 2.0f * lane;
  for (int mask = 1; mask < warpSize; mask *= 2) butterfly += __shfl_xor_sync(all, butterfly, mask);
  double down = 2.0 * lane;
  for (unsigned int delta = 16; delta > 0; delta /= 2) down += __shfl_down_sync(all, down, delta);
  const float first = __shfl_sync(all, static_cast<float>(down), 0);
  const int before = __shfl_up_sync(all, lane, 1u, 8);
  const bool is_right = before == (lane % 8 == 0 ? lane : lane - 1);
  __syncwarp();
  out[threadIdx.x] = is_right && first == butterfly ? first : -1;
}

// What shared memory holds before it is written, in the second of two blocks.
__global__ void unwritten_kernel(float* out) {
  __shared__ float shared[64];
  if (blockIdx.x == 1) out[threadIdx.x] = shared[threadIdx.x];
  __syncthreads();
  shared[threadIdx.x] = 1;
}

// What a thread finds that its neighbour has written, before a barrier and after it.
__global__ void neighbour_kernel(float* out) {
  __shared__ float shared[64];
  const unsigned int next = (threadIdx.x + 1) % 64;
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = shared[next];
}

__global__ void skipped_barrier_kernel(float*) {
  if (threadIdx.x != 5) __syncthreads();
}

__global__ void two_barriers_kernel(float*) {
  if (threadIdx.x < 5) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void lonely_shuffle_kernel(float* out) {
  if (threadIdx.x < 5) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}

// What a thread finds of two copies to the same place: neither, the first, the second.
__global__ void copies_kernel(float* out) {
  __shared__ float shared[64];
  static const float from[] = {1, 2};
  float& place = shared[threadIdx.x];
  for (const float& source : from) {
    copies().begin(&place, &source, sizeof(place));
    copies().end_group();
  }
  const bool is_early = place == place;  // not NaN
  copies().wait(1);
  const float first = place;
  copies().wait(0);
  out[threadIdx.x] = is_early ? -1 : 10 * first + place;
}

// Runs a kernel as two blocks of 64 threads on out[64]; returns what went wrong, or "".
extern "C" const char* cuda_on_host_run_sample(int index, float* out) {
  static std::string error;
  void (*const kernels[])(float*) = {
      &shuffle_kernel,      &unwritten_kernel,      &neighbour_kernel, &skipped_barrier_kernel,
      &two_barriers_kernel, &lonely_shuffle_kernel, &copies_kernel};
  void* arguments[] = {&out};
  error.clear();
  set_order(kOrders[0]);
  try {
    cudaLaunchKernel(kernels[index], dim3(2), dim3(64), arguments, 0, nullptr);
  } catch (const std::runtime_error& caught) {
    error = caught.what();
  }
  return error.c_str();
}

}  // namespace cuda_on_host
