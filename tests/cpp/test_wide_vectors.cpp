// The source that AVX-512 compiles, with its 64-byte vectors, compiled for AVX2: so that machines
// without AVX-512 test it too.
#include "network_checks.h"
#include "pointwise_checks.h"

#define MOBILENET_EXT_VECTOR_BYTES 64
#if defined(__x86_64__) && !defined(__clang__)
#include <cstring>
#include <limits>
#pragma GCC target("avx2,fma")
#endif
#include "kernels/cpu/table.inl.h"
#include "vec_checks.h"

int main() {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    std::puts("skipped: this CPU has no AVX2");
    return 0;
  }
#endif
  mobilenet_ext::cpu::check_vectors();
  const auto table = mobilenet_ext::cpu::make_table("64-byte vectors");
  const int wrong = mobilenet_ext::cpu::check_table(table) +
                    mobilenet_ext::cpu::check_pointwise(table) +
                    mobilenet_ext::cpu::check_network(table);
  return wrong + mobilenet_ext::cpu::failures != 0;
}
