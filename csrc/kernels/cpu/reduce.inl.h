// The second stage of every reduction: partial results of the work items, merged in item order.
// Accumulates in double: there are few partials, and their number must not cost precision.
#pragma once

#include "kernels/cpu/rows.inl.h"

namespace mobilenet_ext::cpu {
namespace {

constexpr int64_t kChannelsPerMerge = 64;  // an item of a merging phase

inline int64_t merge_items(int64_t channels) { return ceil_div(channels, kChannelsPerMerge); }

// Partials of all items, [partials, C]: mean and M2, the sum of squared deviations. In double, as
// a mean that is large against the deviation must not round it away.
struct PartialMoments {
  double* mean;
  double* m2;
  int64_t partials;
};

// Writes one item's partials at `at`; `count` values went into each channel.
template <typename A>
inline void finish_moments(Moments<A>& from, int64_t channels, int64_t count,
                           const PartialMoments& to, int64_t at) {
  from.sums.end_run();
  const double n = static_cast<double>(count);
  for (int64_t c = 0; c < channels; ++c) {
    const double sum = from.sums.total_first[c];
    to.mean[at + c] = from.shift[c] + sum / n;
    to.m2[at + c] = from.sums.total_second[c] - sum * (sum / n);
  }
}

// Chan's formula over all partials: the mean of means, then M2 about it. `count_of(p)` is the
// number of values behind partial p.
template <typename A, typename CountOf>
inline void merge_moments(const PartialMoments& from, int64_t all_channels, Range channels,
                          CountOf count_of, A* mean, A* var) {
  for (int64_t c = channels.begin; c < channels.end; ++c) {
    double count = 0, sum = 0, m2 = 0;
    for (int64_t p = 0; p < from.partials; ++p) {
      const double n = static_cast<double>(count_of(p));
      count += n;
      sum += n * from.mean[p * all_channels + c];
    }
    const double center = sum / count;
    for (int64_t p = 0; p < from.partials; ++p) {
      const double offset = from.mean[p * all_channels + c] - center;
      m2 += from.m2[p * all_channels + c] + static_cast<double>(count_of(p)) * offset * offset;
    }
    mean[c] = static_cast<A>(center);
    var[c] = static_cast<A>(m2 / count < 0 ? 0 : m2 / count);
  }
}

// total = sum of partials[p * stride] for p in order.
template <typename E>
inline double merge_sum(const E* partials, int64_t count, int64_t stride) {
  double total = 0;
  for (int64_t p = 0; p < count; ++p) total += partials[p * stride];
  return total;
}

// Two sums of every channel, one of each for every item: [partials, C].
struct PartialSums {
  double* first;
  double* second;
  int64_t partials, channels;

  // Writes one item's sums of `count` channels, the first of which is `channel`.
  template <typename A>
  void put(ChannelSums<A>& sums, int64_t partial, int64_t channel, int64_t count) const {
    sums.end_run();
    const int64_t at = partial * channels + channel;
    for (int64_t c = 0; c < count; ++c) {
      first[at + c] = sums.total_first[c];
      second[at + c] = sums.total_second[c];
    }
  }

  // Adds up all items' into a channel of [C] each.
  template <typename A>
  void merge(int64_t channel, void* total_first, void* total_second) const {
    static_cast<A*>(total_first)[channel] =
        static_cast<A>(merge_sum(first + channel, partials, channels));
    static_cast<A*>(total_second)[channel] =
        static_cast<A>(merge_sum(second + channel, partials, channels));
  }
};

}  // namespace
}  // namespace mobilenet_ext::cpu
