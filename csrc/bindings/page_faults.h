// Fewer page faults of small maps: freed memory that malloc keeps. Large ones: map_pool.h.
#pragma once

#include <cstdlib>

namespace mobilenet_ext {

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
