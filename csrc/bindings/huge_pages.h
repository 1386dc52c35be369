// Memory in huge pages, where the system has them. Data of some MB in pages of 4 KB needs more of
// them than a core's translation caches hold, so that each page read is also a walk through page
// tables, on a virtual machine through two of them.
#pragma once

#include <cstdint>
#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mobilenet_ext {

constexpr int64_t kHugePage = 2 * 1024 * 1024;

constexpr int64_t round_to_huge_pages(int64_t bytes) {
  return (bytes + kHugePage - 1) / kHugePage * kHugePage;
}

// For memory that nobody has touched yet. A hint: without huge pages nothing changes.
inline void prefer_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

// New memory of whole huge pages; null if there is none. malloc's may have been touched before, and
// keeps its pages.
inline void* map_huge_pages(int64_t bytes) {
#if defined(__linux__)
  const int64_t wanted = round_to_huge_pages(bytes), mapped = wanted + kHugePage;
  void* const memory =
      mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  char* const begin = static_cast<char*>(memory);
  const int64_t before = -reinterpret_cast<uintptr_t>(memory) & (kHugePage - 1);
  if (before) munmap(begin, before);
  munmap(begin + before + wanted, kHugePage - before);
  prefer_huge_pages(begin + before, wanted);
  return begin + before;
#else
  return std::aligned_alloc(kHugePage, round_to_huge_pages(bytes));
#endif
}

inline void unmap_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
  munmap(memory, round_to_huge_pages(bytes));
#else
  (void)bytes;
  std::free(memory);
#endif
}

}  // namespace mobilenet_ext
