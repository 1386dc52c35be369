// Cuts arrays out of the workspace and the scratch that the caller has allocated. The same code
// measures (base null) and hands out, so the two cannot disagree.
#pragma once

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/partition.h"

namespace mobilenet_ext::cpu {
namespace {

class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  // `count` elements of E on a cache line of their own.
  template <typename E>
  E* take(int64_t count) {
    E* array = base_ ? reinterpret_cast<E*>(base_ + bytes_) : nullptr;
    bytes_ += round_up(count * static_cast<int64_t>(sizeof(E)), kAlignment);
    return array;
  }

  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

}  // namespace
}  // namespace mobilenet_ext::cpu
