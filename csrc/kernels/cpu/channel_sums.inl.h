// Two sums per channel over any number of pixels. Runs of pixels are summed in accumulators, the
// runs in double: so that long sums are as accurate as short ones at next to no cost.
#pragma once

#include "kernels/cpu/memory.h"
#include "kernels/cpu/vec.h"

namespace mobilenet_ext::cpu {
namespace {

// Long enough to make the double additions cheap, short enough not to lose digits.
constexpr int64_t kRunPixels = 64;

template <typename A>
struct ChannelSums {
  A* first;  // of this run, whole vectors of channels
  A* second;
  double* total_first;
  double* total_second;
  int64_t channels;
  int64_t run;  // pixels summed since the totals

  ChannelSums(int64_t for_channels, Arena& arena) : channels(round_up(for_channels, kLanes<A>)) {
    first = arena.take<A>(channels);
    second = arena.take<A>(channels);
    total_first = arena.take<double>(channels);
    total_second = arena.take<double>(channels);
  }

  void clear() {
    for (int64_t c = 0; c < channels; ++c) {
      first[c] = second[c] = 0;
      total_first[c] = total_second[c] = 0;
    }
    run = 0;
  }

  void add(int64_t c, Vec<A> a, Vec<A> b) const {
    store(first + c, load(first + c, AllLanes{}) + a, AllLanes{});
    store(second + c, load(second + c, AllLanes{}) + b, AllLanes{});
  }

  // `pixels` more have been added.
  void count(int64_t pixels) {
    run += pixels;
    if (run >= kRunPixels) end_run();
  }

  void end_run() {
    for (int64_t c = 0; c < channels; ++c) {
      total_first[c] += first[c];
      total_second[c] += second[c];
      first[c] = second[c] = 0;
    }
    run = 0;
  }
};

// Calls f(pixels) for runs of a row's pixels, and counts them.
template <typename A, typename F>
inline void for_each_run(int64_t pixels, ChannelSums<A>& sums, F f) {
  for (int64_t p = 0; p < pixels; p += kRunPixels) {
    const Range part{p, min_of(p + kRunPixels, pixels)};
    f(part);
    sums.count(part.size());
  }
}

}  // namespace
}  // namespace mobilenet_ext::cpu
