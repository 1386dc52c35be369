// What starting a kernel takes: the launch itself, and the choice of a template instance.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <initializer_list>

namespace mobilenet_ext::cuda {

template <typename Params>
cudaError_t launch(void (*kernel)(Params), int64_t blocks, int threads, cudaStream_t stream,
                   Params params) {
  void* arguments[] = {&params};
  const dim3 grid(static_cast<unsigned int>(blocks)), block(static_cast<unsigned int>(threads));
  return cudaLaunchKernel(kernel, grid, block, arguments, 0, stream);
}

template <typename C>
struct TypeTag {
  using type = C;
};

// Whether a P can be loaded from, or stored at, each of the pointers; null ones are not used.
template <typename P>
bool are_aligned(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers) {
    if (reinterpret_cast<uintptr_t>(pointer) % alignof(P) != 0) return false;
  }
  return true;
}

}  // namespace mobilenet_ext::cuda
