// The second stage of every reduction: partial results of the work items, merged in item order.
// Accumulates in double: there are few partials, and their number must not cost precision.
#pragma once

#include "kernels/cpu/rows.inl.h"

namespace mobilenet_ext::cpu {
namespace {

constexpr int64_t kChannelsPerMerge = 64;  // an item of a merging phase

inline int64_t merge_items(int64_t channels) { return ceil_div(channels, kChannelsPerMerge); }

// Partial mean and M2 (sum of squared deviations) of one item's values, [C] each.
template <typename A>
inline void finish_moments(const Moments<A>& from, int64_t channels, int64_t count, A* mean,
                           A* m2) {
  const A n = static_cast<A>(count);
  for (int64_t c = 0; c < channels; ++c) {
    mean[c] = from.shift[c] + from.sum[c] / n;
    m2[c] = from.square[c] - from.sum[c] * (from.sum[c] / n);
  }
}

// Partials of all items: mean and M2 are [partials, C].
template <typename A>
struct PartialMoments {
  A* mean;
  A* m2;
  int64_t partials;
};

// Chan's formula over all partials: the mean of means, then M2 about it. `count_of(p)` is the
// number of values behind partial p.
template <typename A, typename CountOf>
inline void merge_moments(const PartialMoments<A>& from, int64_t all_channels, Range channels,
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
template <typename A>
inline A merge_sum(const A* partials, int64_t count, int64_t stride) {
  double total = 0;
  for (int64_t p = 0; p < count; ++p) total += partials[p * stride];
  return static_cast<A>(total);
}

}  // namespace
}  // namespace mobilenet_ext::cpu
