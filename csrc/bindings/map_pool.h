// Memory of large maps, kept from one training step to the next. malloc returns blocks of 32 MB and
// more to the kernel at once, and the next step has all of their pages cleared again, which took
// longer than some maps' convolutions. A map that is freed leaves its block here instead, marked as
// memory that the system may take back whenever it runs short.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

// A tensor on memory that is not torch's, with a function to call when it is freed. Since torch
// 2.11: null before.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset,
    int32_t dtype, int32_t device_type, int32_t device_index, AtenTensorHandle* result,
    int32_t layout, const uint8_t* opaque_metadata, int64_t opaque_metadata_size,
    void (*deleter)(void* data, void* context), void* context);

namespace mobilenet_ext {

class MapPool {
 public:
  // Smaller maps are malloc's, which keeps them by itself.
  static constexpr int64_t kLeastBytes = 4 * 1024 * 1024;

  struct Block {
    void* memory;
    int64_t bytes;
  };

  // The pool of this process. It outlives every tensor.
  static MapPool& get() {
    static MapPool* const pool = new MapPool;
    return *pool;
  }

  static bool takes(int64_t bytes) { return bytes >= kLeastBytes && torch_from_blob; }

  // At least `least` bytes: of the blocks that fit best the one that came back last, which may
  // still be in a cache. Of a null pointer if there is no memory.
  Block take(int64_t least) {
    const int64_t bytes = (least + kHugePage - 1) / kHugePage * kHugePage;
    const std::lock_guard<std::mutex> lock(mutex_);
    size_t best = idle_.size();
    for (size_t i = 0; i < idle_.size(); ++i) {
      const bool fits = idle_[i].bytes >= bytes && idle_[i].bytes <= bytes + bytes / 4;
      if (fits && (best == idle_.size() || idle_[i].bytes <= idle_[best].bytes)) best = i;
    }
    Block block{};
    if (best < idle_.size()) {
      block = idle_[best];
      idle_.erase(idle_.begin() + static_cast<std::ptrdiff_t>(best));
      idle_bytes_ -= block.bytes;
    } else {
      block = allocate(bytes);
    }
    if (block.memory) used_bytes_ += block.bytes;
    most_bytes_ = std::max(most_bytes_, used_bytes_);
    return block;
  }

  // Half as much again as has been in use at once may lie here beside what is in use, for maps of
  // other sizes. What has lain here longest goes first.
  void give_back(Block block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    lend_to_system(block);
    idle_.push_back(block);
    used_bytes_ -= block.bytes;
    idle_bytes_ += block.bytes;
    while (used_bytes_ + idle_bytes_ > most_bytes_ + most_bytes_ / 2) {
      idle_bytes_ -= idle_.front().bytes;
      std::free(idle_.front().memory);
      idle_.erase(idle_.begin());
    }
  }

 private:
  static constexpr int64_t kHugePage = 2 * 1024 * 1024;

  // In huge pages, if the system has them.
  static Block allocate(int64_t bytes) {
    void* memory = std::aligned_alloc(kHugePage, bytes);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (memory) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return {memory, bytes};
  }

  static void lend_to_system(Block block) {
#if defined(__linux__) && defined(MADV_FREE)
    madvise(block.memory, block.bytes, MADV_FREE);
#else
    (void)block;
#endif
  }

  std::mutex mutex_;
  std::vector<Block> idle_;  // in the order they came back
  int64_t idle_bytes_ = 0, used_bytes_ = 0, most_bytes_ = 0;
};

}  // namespace mobilenet_ext
