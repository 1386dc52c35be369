// The asynchronous copies of one thread: a GPU makes them when it likes.
#pragma once

#include <cstring>
#include <deque>

namespace cuda_on_host {

class Copies {
 public:
  // `at_once`: made as soon as they are begun; else when the thread waits for them, and no sooner.
  explicit Copies(bool at_once = false) : at_once_(at_once) {}

  // From null: zeros.
  void begin(void* to, const void* from, size_t bytes) {
    pending_.push_back({to, from, bytes, groups_});
    if (at_once_) make(pending_.back());
  }

  void end_group() { ++groups_; }

  // Makes all but those of the last `groups` groups.
  void wait(unsigned int groups) {
    for (; !pending_.empty() && pending_.front().group + groups < groups_; pending_.pop_front()) {
      if (!at_once_) make(pending_.front());
    }
  }

  // Whether there are any that the thread has not waited for.
  bool are_pending() const { return !pending_.empty(); }

 private:
  struct Copy {
    void* to;
    const void* from;
    size_t bytes;
    unsigned int group;
  };

  static void make(const Copy& copy) {
    if (copy.from) {
      std::memcpy(copy.to, copy.from, copy.bytes);
    } else {
      std::memset(copy.to, 0, copy.bytes);
    }
  }

  bool at_once_;
  std::deque<Copy> pending_;  // in their order
  unsigned int groups_ = 0;   // that have ended
};

}  // namespace cuda_on_host
