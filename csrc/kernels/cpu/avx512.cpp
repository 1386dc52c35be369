// AVX-512: Intel servers since 2017, AMD since 2022.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#endif
#define MOBILENET_EXT_VECTOR_BYTES 64
#include "kernels/cpu/x86.h"
// It specialises what the kernels use.
#include "kernels/cpu/table.inl.h"

namespace mobilenet_ext::cpu {
extern const KernelTable kAvx512;
const KernelTable kAvx512 = make_table("avx512");
}  // namespace mobilenet_ext::cpu
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
