// Copies from global to shared memory that go on while their thread does: of 4 bytes or more, from
// sm_80 on; others are done at once. A thread's copies end in the order of their groups, so that it
// can wait for the oldest group alone. Loads to registers cannot be told apart like that: the
// compiler has six counters for all that a thread waits for, so that the use of one row waited for
// the loads of all rows after it.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/packs.h"

namespace mobilenet_ext::cuda {

#ifdef __CUDACC__

// Fills this thread's place `to` in shared memory from `from`, or with zeros.
template <typename P>
inline __device__ void copy_async(P* to, const void* from, bool inside) {
#if __CUDA_ARCH__ >= 800
  if constexpr (sizeof(P) >= 4) {
    const auto address = static_cast<unsigned int>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from),
                 "n"(sizeof(P)), "r"(inside ? static_cast<unsigned int>(sizeof(P)) : 0)
                 : "memory");
    return;
  }
#endif
  *to = inside ? load<P>(from) : P{};
}

inline __device__ void end_copy_group() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all groups but the last kGroups.
template <int kGroups>
inline __device__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
}

#else

template <typename P>
inline void copy_async(P* to, const void* from, bool inside) {
  cuda_on_host::copies().begin(to, inside ? from : nullptr, sizeof(P));
}

inline void end_copy_group() { cuda_on_host::copies().end_group(); }

template <int kGroups>
inline void wait_for_copies() {
  cuda_on_host::copies().wait(kGroups);
}

#endif

}  // namespace mobilenet_ext::cuda
