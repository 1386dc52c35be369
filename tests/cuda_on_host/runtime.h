// What the tests ask of the runtime in cuda_runtime_api.h: the order of threads and blocks, which
// kernels have run, which barriers they have reached, and to run as if one barrier were not there.
#pragma once

#include <cstdint>
#include <string>

namespace cuda_on_host {

// Threads run in this order from barrier to barrier, and so do blocks from begin to end.
struct Order {
  const char* name;
  enum class Kind { kForward, kReverse, kShuffled } kind;
  uint32_t seed;
  bool copies_at_once;  // asynchronous ones; or else as late as can be
};

// All those that kernels run under; fewer where it takes long.
constexpr Order kOrders[] = {
    {"forward", Order::Kind::kForward, 0, false},
    {"shuffled 1", Order::Kind::kShuffled, 1, true},
#ifndef __SANITIZE_ADDRESS__
    {"reverse", Order::Kind::kReverse, 0, true},
    {"shuffled 2", Order::Kind::kShuffled, 2, false},
#endif
};

void set_order(const Order& order);

// Where in this library the kernels are that have been launched: hexadecimal, one a line.
std::string launched_kernels();

// All barriers that a thread has reached, one file:line a line.
std::string reached_barriers();

// From now on this barrier, as reached_barriers() has it, is not there; with "" all of them are.
void ignore_barrier(const std::string& site);

}  // namespace cuda_on_host
