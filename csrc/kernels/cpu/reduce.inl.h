// The second stage of every reduction: partial results of the work items, merged in item order.
// Accumulates in double: there are few partials, and their number must not cost precision.
#pragma once

#include "kernels/cpu/rows.inl.h"

namespace mobilenet_ext::cpu {
namespace {

constexpr int64_t kChannelsPerMerge = 64;  // an item of a merging phase

inline int64_t merge_items(int64_t channels) { return ceil_div(channels, kChannelsPerMerge); }

// Calls f(range) with runs of at most kChannelsPerMerge of the channels of items [begin, end).
template <typename F>
inline void for_each_merged(int64_t begin, int64_t end, int64_t channels, F f) {
  for (int64_t i = begin; i < end; ++i) f(chunk(i, kChannelsPerMerge, channels));
}

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

// Chan's formula over all partials, for at most kChannelsPerMerge channels: the mean of means, then
// M2 about it. `count_of(p)` is the number of values behind partial p.
template <typename A, typename CountOf>
inline void merge_moments_of(const PartialMoments& from, int64_t all_channels, Range channels,
                             CountOf count_of, A* mean, A* var) {
  double center[kChannelsPerMerge] = {}, m2[kChannelsPerMerge] = {}, count = 0;
  for (int64_t p = 0; p < from.partials; ++p) {
    const double n = static_cast<double>(count_of(p));
    const double* means = from.mean + p * all_channels + channels.begin;
    for (int64_t c = 0; c < channels.size(); ++c) center[c] += n * means[c];
    count += n;
  }
  for (int64_t c = 0; c < channels.size(); ++c) center[c] /= count;
  for (int64_t p = 0; p < from.partials; ++p) {
    const double n = static_cast<double>(count_of(p));
    const int64_t at = p * all_channels + channels.begin;
    for (int64_t c = 0; c < channels.size(); ++c) {
      const double offset = from.mean[at + c] - center[c];
      m2[c] += from.m2[at + c] + n * offset * offset;
    }
  }
  for (int64_t c = 0; c < channels.size(); ++c) {
    mean[channels.begin + c] = static_cast<A>(center[c]);
    var[channels.begin + c] = static_cast<A>(m2[c] < 0 ? 0 : m2[c] / count);
  }
}

// The same for all channels of items [begin, end).
template <typename A, typename CountOf>
inline void merge_moments(const PartialMoments& from, int64_t all_channels, int64_t begin,
                          int64_t end, CountOf count_of, A* mean, A* var) {
  for_each_merged(begin, end, all_channels, [&](Range part) {
    merge_moments_of(from, all_channels, part, count_of, mean, var);
  });
}

// The sums of at most kChannelsPerMerge channels over partials [count, stride], in their order.
struct MergedSums {
  double total[kChannelsPerMerge] = {};

  template <typename E>
  MergedSums(const E* partials, int64_t count, int64_t stride, int64_t channels) {
    for (int64_t p = 0; p < count; ++p) {
      for (int64_t c = 0; c < channels; ++c) total[c] += partials[p * stride + c];
    }
  }
};

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

  // The totals of some channels, over all items; both are [C].
  template <typename A>
  void merge(Range part, void* total_first, void* total_second) const {
    const MergedSums a(first + part.begin, partials, channels, part.size());
    const MergedSums b(second + part.begin, partials, channels, part.size());
    for (int64_t c = 0; c < part.size(); ++c) {
      static_cast<A*>(total_first)[part.begin + c] = static_cast<A>(a.total[c]);
      static_cast<A*>(total_second)[part.begin + c] = static_cast<A>(b.total[c]);
    }
  }
};

}  // namespace
}  // namespace mobilenet_ext::cpu
