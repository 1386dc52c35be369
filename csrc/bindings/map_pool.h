// Memory of large maps, kept from one training step to the next. malloc returns blocks of 32 MB and
// more to the kernel at once, and the next step has all of their pages cleared again, which took
// longer than some maps' convolutions. A map that is freed leaves its block here instead, marked as
// memory that the system may take back whenever it runs short.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <vector>

#include "bindings/huge_pages.h"

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
  // Smaller maps are malloc's, which keeps some 62 MB by itself (page_faults.h).
  static constexpr int64_t kLeastBytes = 4 * 1024 * 1024;

  struct Block {
    void* memory;
    int64_t bytes;
  };

  // The pool of this library. It outlives every tensor.
  static MapPool& get() {
    static MapPool* const pool = new MapPool;
    return *pool;
  }

  // At least `least` bytes: of the blocks that fit best the one that came back last, which may
  // still be in a cache. Of a null pointer if there is no memory.
  Block take(int64_t least) {
    const int64_t bytes = round_to_huge_pages(least);
    Block block = take_idle(bytes);
    if (!block.memory) block = allocate(bytes);
    if (!block.memory) {
      free_all(evict(0));
      block = allocate(bytes);
    }
    if (block.memory) count(block.bytes);
    return block;
  }

  void give_back(Block block) {
    lend_to_system(block);
    free_all(put_idle(block));
  }

 private:
  static Block allocate(int64_t bytes) { return {map_huge_pages(bytes), bytes}; }

  static void lend_to_system(Block block) {
#if defined(__linux__) && defined(MADV_FREE)
    madvise(block.memory, block.bytes, MADV_FREE);
#else
    (void)block;
#endif
  }

  static void free_all(const std::vector<Block>& blocks) {
    for (const Block& block : blocks) unmap_huge_pages(block.memory, block.bytes);
  }

  Block take_idle(int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    size_t best = idle_.size();
    for (size_t i = 0; i < idle_.size(); ++i) {
      const bool fits = idle_[i].bytes >= bytes && idle_[i].bytes <= bytes + bytes / 4;
      if (fits && (best == idle_.size() || idle_[i].bytes <= idle_[best].bytes)) best = i;
    }
    if (best == idle_.size()) return {};
    const Block block = idle_[best];
    idle_.erase(idle_.begin() + static_cast<std::ptrdiff_t>(best));
    idle_bytes_ -= block.bytes;
    return block;
  }

  void count(int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    used_bytes_ += bytes;
    peak_bytes_ = std::max(peak_bytes_, used_bytes_);
  }

  // What is in use and what is idle are together half as much again as was in use at once, of late:
  // each time that nothing is left in use, the mark comes nearer to the peak since the last time.
  std::vector<Block> put_idle(Block block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(block);
    idle_bytes_ += block.bytes;
    used_bytes_ -= block.bytes;
    mark_bytes_ = std::max(mark_bytes_, peak_bytes_);
    if (used_bytes_ == 0) {
      mark_bytes_ = std::max(peak_bytes_, mark_bytes_ - mark_bytes_ / 8);
      peak_bytes_ = 0;
    }
    return evict_locked(mark_bytes_ + mark_bytes_ / 2 - used_bytes_);
  }

  std::vector<Block> evict(int64_t left) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return evict_locked(left);
  }

  // Blocks that were idle longest, until `left` bytes are.
  std::vector<Block> evict_locked(int64_t left) {
    size_t count = 0;
    for (; count < idle_.size() && idle_bytes_ > left; ++count) idle_bytes_ -= idle_[count].bytes;
    const auto end = idle_.begin() + static_cast<std::ptrdiff_t>(count);
    const std::vector<Block> evicted(idle_.begin(), end);
    idle_.erase(idle_.begin(), end);
    return evicted;
  }

  std::mutex mutex_;
  std::vector<Block> idle_;  // in the order they came back
  int64_t idle_bytes_ = 0, used_bytes_ = 0, peak_bytes_ = 0, mark_bytes_ = 0;
};

}  // namespace mobilenet_ext
