// Fewer page faults: in pages of 4 KB those of a new map cost more than its pointwise convolution.
#pragma once

#include <cstdint>
#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mobilenet_ext {

// Two huge pages lie within this wherever it begins, but for its ends.
constexpr int64_t kHugePageWorth = 4 * 1024 * 1024;

// Asks for huge pages for `bytes` of memory just allocated, where they have not been touched yet:
// always if malloc has mapped them anew, as it does from 32 MB on. A hint: if the system has none,
// nothing changes.
inline void prefer_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < kHugePageWorth) return;
  constexpr uintptr_t kPage = 4096;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

// Makes glibc keep up to 62 MB of freed memory, as it does in any process that has once freed a
// block of half of that: its thresholds follow what is freed. Until then it returns the maps of
// every training step to the kernel, and the next step faults all of their pages in again.
inline void keep_freed_memory() {
#if defined(__GLIBC__)
  constexpr size_t kLargest = 31 * 1024 * 1024;  // blocks of 32 MB or more leave them as they are
  void* volatile block = std::malloc(kLargest);
  std::free(block);
#endif
}

}  // namespace mobilenet_ext
