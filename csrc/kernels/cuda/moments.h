// Mean and variance of every channel in two stages. A thread keeps sums of (x - shift) and its
// square, where its own first value as shift keeps them small if the mean is large against the
// deviation; its thread block merges them by Chan's formula and leaves partial moments in the
// workspace; a second kernel merges those in double. Every order is fixed: no atomics.
#pragma once

#include "kernels/cuda/partition.h"
#include "kernels/cuda/storage.h"

namespace mobilenet_ext::cuda {
namespace {

// M2 is the sum of squared deviations from the mean.
template <typename A>
struct Moments {
  A count, mean, m2;
};

template <typename A>
inline __device__ Moments<A> merge(const Moments<A>& a, const Moments<A>& b) {
  if (b.count == 0) return a;
  const A count = a.count + b.count, offset = b.mean - a.mean, share = b.count / count;
  return {count, a.mean + offset * share, a.m2 + b.m2 + offset * offset * a.count * share};
}

// What one thread has seen of kLanes channels.
template <typename A, int kLanes>
struct ShiftedSums {
  A shift[kLanes] = {}, sum[kLanes] = {}, square[kLanes] = {};
  int64_t count = 0;

  __device__ void add(const A (&x)[kLanes]) {
    for (int v = 0; v < kLanes; ++v) {
      if (count == 0) shift[v] = x[v];
      const A offset = x[v] - shift[v];
      sum[v] += offset;
      square[v] += offset * offset;
    }
    ++count;
  }

  __device__ Moments<A> moments(int v) const {
    if (count == 0) return {};
    const A n = static_cast<A>(count), mean = sum[v] / n;
    return {n, shift[v] + mean, square[v] - sum[v] * mean};
  }
};

// Partial moments of all thread blocks; a count is the same for all channels.
template <typename A>
struct PartialMoments {
  A* mean;   // [partitions, C]
  A* m2;     // [partitions, C]
  A* count;  // [partitions]

  PartialMoments(void* workspace, int64_t partitions, int64_t channels)
      : mean(static_cast<A*>(workspace)),
        m2(mean + partitions * channels),
        count(m2 + partitions * channels) {}

  static int64_t bytes(int64_t partitions, int64_t channels) {
    return (2 * channels + 1) * partitions * static_cast<int64_t>(sizeof(A));
  }
};

// Merges the sums of a thread block's positions into the partial moments of its partition.
template <typename A, int kLanes>
inline __device__ void reduce_thread_block(const ShiftedSums<A, kLanes>& sums,
                                           const ConvPartition& p, const Place& place,
                                           int64_t channels, const PartialMoments<A>& to) {
  __shared__ Moments<A> shared[kLanes][kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  for (int v = 0; v < kLanes; ++v) shared[v][thread] = sums.moments(v);
  for (int step = kThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (place.position >= step || place.position + step >= p.positions) continue;
    const int other = thread + step * p.vectors;
    for (int v = 0; v < kLanes; ++v) shared[v][thread] = merge(shared[v][thread], shared[v][other]);
  }
  if (!place.works || place.position > 0) return;
  const int64_t at = place.partition * channels + place.channel;
  for (int v = 0; v < kLanes; ++v) {
    to.mean[at + v] = shared[v][thread].mean;
    to.m2[at + v] = shared[v][thread].m2;
  }
  if (place.channel == 0) to.count[place.partition] = shared[0][thread].count;
}

// A thread block of the second stage: 32 bytes of float channels a row, many rows at a time.
constexpr int kMergeChannels = 8;
constexpr int kMergeSlices = kThreads / kMergeChannels;

template <typename A>
struct MergeParams {
  PartialMoments<A> from;
  int64_t partitions, channels;
  A* mean;  // [C]
  A* var;   // [C]
};

// The sum over the slices of this thread's channel, for all of its threads.
inline __device__ double sum_slices(double value) {
  __shared__ double shared[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  shared[thread] = value;
  for (int step = kMergeSlices / 2; step > 0; step /= 2) {
    __syncthreads();
    if (thread / kMergeChannels < step) shared[thread] += shared[thread + step * kMergeChannels];
  }
  __syncthreads();
  return shared[thread % kMergeChannels];
}

// Chan's formula over all partials: the mean of means, then M2 about it. No values: NaN.
template <typename A>
__global__ void __launch_bounds__(kThreads) merge_moments_kernel(MergeParams<A> params) {
  const int slice = static_cast<int>(threadIdx.x) / kMergeChannels;
  const int64_t channel =
      static_cast<int64_t>(blockIdx.x) * kMergeChannels + threadIdx.x % kMergeChannels;
  const PartialMoments<A>& from = params.from;
  const int64_t partitions = channel < params.channels ? params.partitions : 0;
  double count = 0, sum = 0, m2 = 0;
  for (int64_t p = slice; p < partitions; p += kMergeSlices) {
    count += from.count[p];
    sum += static_cast<double>(from.count[p]) * from.mean[p * params.channels + channel];
  }
  count = sum_slices(count);
  const double center = sum_slices(sum) / count;
  for (int64_t p = slice; p < partitions; p += kMergeSlices) {
    const double offset = from.mean[p * params.channels + channel] - center;
    m2 += from.m2[p * params.channels + channel] + from.count[p] * offset * offset;
  }
  const double var = sum_slices(m2) / count;
  if (slice > 0 || channel >= params.channels) return;
  params.mean[channel] = static_cast<A>(center);
  params.var[channel] = static_cast<A>(var < 0 ? 0 : var);
}

}  // namespace
}  // namespace mobilenet_ext::cuda
