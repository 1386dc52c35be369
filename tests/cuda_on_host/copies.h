// The asynchronous copies of one thread.
#pragma once

#include <cstring>
#include <deque>

namespace cuda_on_host {

// They are made when the thread waits for them, and no sooner.
class Copies {
 public:
  // From null: zeros.
  void begin(void* to, const void* from, size_t bytes) {
    pending_.push_back({to, from, bytes, groups_});
  }

  void end_group() { ++groups_; }

  // Makes all but those of the last `groups` groups.
  void wait(unsigned int groups) {
    for (; !pending_.empty() && pending_.front().group + groups < groups_; pending_.pop_front()) {
      const Copy& copy = pending_.front();
      if (copy.from) {
        std::memcpy(copy.to, copy.from, copy.bytes);
      } else {
        std::memset(copy.to, 0, copy.bytes);
      }
    }
  }

 private:
  struct Copy {
    void* to;
    const void* from;
    size_t bytes;
    unsigned int group;
  };

  std::deque<Copy> pending_;  // in their order
  unsigned int groups_ = 0;   // that have ended
};

}  // namespace cuda_on_host
