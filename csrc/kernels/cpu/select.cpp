// Asks the CPU once which instruction sets it has and how large its caches are, and keeps the
// choice of kernel table. MOBILENET_EXT_ISA, MOBILENET_EXT_L2_KB and MOBILENET_EXT_L3_KB in the
// environment, read at first use, override it.
#if defined(__linux__)
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "kernels/cpu/kernels.h"

namespace mobilenet_ext::cpu {

extern const KernelTable kBaseline;
#if defined(__x86_64__)
extern const KernelTable kAvx2;
extern const KernelTable kAvx512;
#endif

namespace {

struct Available {
  const KernelTable* tables[3] = {&kBaseline};
  int count = 1;

  Available() {
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return;
    tables[count++] = &kAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      tables[count++] = &kAvx512;
    }
#endif
  }

  const KernelTable* find(const char* name) const {
    for (int i = 0; name && i < count; ++i) {
      if (std::strcmp(tables[i]->name, name) == 0) return tables[i];
    }
    return nullptr;
  }
};

const Available& available() {
  static const Available instance;
  return instance;
}

std::atomic<const KernelTable*>& current() {
  static std::atomic<const KernelTable*> table = [] {
    const KernelTable* named = available().find(std::getenv("MOBILENET_EXT_ISA"));
    return named ? named : available().tables[available().count - 1];
  }();
  return table;
}

constexpr int64_t kKilobyte = 1024;

// What the environment says, or the system, or what is usual.
int64_t find_kilobytes(const char* variable, int64_t system_bytes, int64_t usual) {
  int64_t kilobytes = 0;
  if (const char* given = std::getenv(variable)) kilobytes = std::atoll(given);
  if (kilobytes <= 0) kilobytes = system_bytes / kKilobyte;
  return kilobytes > 0 ? kilobytes : usual;
}

int64_t find_l2_cache_bytes() {
  constexpr int64_t kUsual = 512, kLeast = 128, kMost = 4096;
  int64_t system_bytes = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
  system_bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
  const int64_t kilobytes = find_kilobytes("MOBILENET_EXT_L2_KB", system_bytes, kUsual);
  return std::clamp(kilobytes, kLeast, kMost) * kKilobyte;
}

// The last cache that this CPU shares with few others. (glibc tells the sum of a socket's.)
int64_t find_last_cache_bytes() {
  constexpr int64_t kUsual = 32 * 1024;
  int64_t system_kilobytes = 0;
  std::ifstream("/sys/devices/system/cpu/cpu0/cache/index3/size") >> system_kilobytes;
  return find_kilobytes("MOBILENET_EXT_L3_KB", system_kilobytes * kKilobyte, kUsual) * kKilobyte;
}

}  // namespace

int64_t l2_cache_bytes() {
  static const int64_t bytes = find_l2_cache_bytes();
  return bytes;
}

int64_t last_cache_bytes() {
  static const int64_t bytes = find_last_cache_bytes();
  return bytes;
}

const KernelTable& kernels() { return *current().load(std::memory_order_relaxed); }

const KernelTable* const* available_kernels(int* count) {
  *count = available().count;
  return available().tables;
}

bool select_kernels(const char* name) {
  const KernelTable* named = available().find(name);
  if (named) current().store(named);
  return named != nullptr;
}

}  // namespace mobilenet_ext::cpu
