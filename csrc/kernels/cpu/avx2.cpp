// AVX2 with FMA: Intel since 2013, AMD since 2015.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define MOBILENET_EXT_VECTOR_BYTES 32
#include "kernels/cpu/x86.h"
// It specialises what the kernels use.
#include "kernels/cpu/table.inl.h"

namespace mobilenet_ext::cpu {
extern const KernelTable kAvx2;
const KernelTable kAvx2 = make_table("avx2");
}  // namespace mobilenet_ext::cpu
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
