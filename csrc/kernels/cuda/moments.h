// Mean and variance of every channel in two stages. A thread keeps sums of (x - shift) and its
// square, where its own first value as shift keeps them small if the mean is large against the
// deviation; its thread block merges them by Chan's formula, as distances from a common origin for
// the same reason, and leaves partial moments in the workspace; a second kernel merges those in
// double. Every order is fixed: no atomics.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/cuda/packs.h"
#include "kernels/cuda/partition.h"

namespace mobilenet_ext::cuda {

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
  int count = 0;

  // What is likely to be near the mean, before anything is added.
  template <int kValues>
  __device__ void shift_by_first(const A (&x)[kValues]) {
    for (int v = 0; v < kLanes; ++v) shift[v] = count == 0 ? x[v] : shift[v];
  }

  // Of one pixel or more.
  template <int kValues>
  __device__ void add(const A (&x)[kValues]) {
    for (int first = 0; first < kValues; first += kLanes) {
      for (int v = 0; v < kLanes; ++v) {
        const A offset = x[first + v] - shift[v];
        sum[v] += offset;
        square[v] += offset * offset;
      }
      ++count;
    }
  }

  // Of the distances from `origin`.
  __device__ Moments<A> moments(int v, A origin) const {
    if (count == 0) return {};
    const A n = static_cast<A>(count), mean = sum[v] / n;
    return {n, shift[v] - origin + mean, square[v] - sum[v] * mean};
  }
};

// Partial moments of all thread blocks. A count is the same for all channels. A mean is exact in
// double: rounded to float where it is large against the deviation, it would spoil the variance.
template <typename A>
struct PartialMoments {
  double* mean;   // [partitions, C]
  double* count;  // [partitions]
  A* m2;          // [partitions, C]

  MOBILENET_EXT_HOST_DEVICE PartialMoments(void* workspace, int64_t partitions, int64_t channels)
      : mean(static_cast<double*>(workspace)),
        count(mean + partitions * channels),
        m2(reinterpret_cast<A*>(count + partitions)) {}

  static int64_t bytes(int64_t partitions, int64_t channels) {
    const int64_t doubles = (channels + 1) * static_cast<int64_t>(sizeof(double));
    return partitions * (doubles + channels * static_cast<int64_t>(sizeof(A)));
  }
};

// Merges over i in [0, size): shared[v][i * stride + j] goes to shared[v][j], for every v and j.
// The calling thread stands for one (i, j); all threads of the block call.
template <typename A, int kLanes, int kSize>
inline __device__ void merge_in_block(Moments<A> (&shared)[kLanes][kSize], int i, int j, int size,
                                      int stride) {
  for (int step = kSize / 2; step > 0; step /= 2) {
    __syncthreads();
    if (i >= step || i + step >= size) continue;
    for (int v = 0; v < kLanes; ++v) {
      Moments<A>& mine = shared[v][i * stride + j];
      mine = merge(mine, shared[v][(i + step) * stride + j]);
    }
  }
}

// Merges the sums of a thread block's positions into the partial moments of its partition.
template <typename A, int kLanes>
inline __device__ void store_partials(const ShiftedSums<A, kLanes>& sums, const ChannelPartition& p,
                                      const Place& place, int64_t channels,
                                      const PartialMoments<A>& to) {
  __shared__ Moments<A> shared[kLanes][kThreads];
  __shared__ A origin[kLanes][kMaxVectors];
  for (int v = 0; v < kLanes && place.position == 0; ++v) origin[v][place.vector] = sums.shift[v];
  __syncthreads();
  for (int v = 0; v < kLanes; ++v) {
    shared[v][threadIdx.x] = sums.moments(v, origin[v][place.vector]);
  }
  merge_in_block(shared, place.position, place.vector, p.positions, p.vectors);
  if (!place.works || place.position > 0) return;
  const int64_t at = place.partition * channels + place.channel;
  for (int v = 0; v < kLanes; ++v) {
    const Moments<A>& total = shared[v][place.vector];
    to.mean[at + v] = static_cast<double>(origin[v][place.vector]) + total.mean;
    to.m2[at + v] = total.m2;
  }
  if (place.channel == 0) to.count[place.partition] = shared[0][place.vector].count;
}

// A thread block of the second stage reads 32 bytes of each row of partial means, the least that
// memory delivers, and many rows at a time: there are few such blocks, and the next kernel waits
// for them.
constexpr int kMergeThreads = 1024;
constexpr int kMergeChannels = 4;
constexpr int kMergeSlices = kMergeThreads / kMergeChannels;

// Of values' distances from an origin, and their squares. To add them up takes no division.
struct OffsetSums {
  double count, sum, square;

  __device__ void add(const OffsetSums& other) {
    count += other.count;
    sum += other.sum;
    square += other.square;
  }
};

template <typename A>
struct MergeParams {
  PartialMoments<A> from;
  int64_t partitions, channels;
  A* mean;  // [C]
  A* var;   // [C]
};

// In double: the number of partials must not cost precision. The origin is the mean of the first,
// which is near the others' if they are large against the deviation. No values at all: NaN.
template <typename A>
__global__ void __launch_bounds__(kMergeThreads) merge_moments_kernel(MergeParams<A> params) {
  __shared__ OffsetSums shared[kMergeThreads];
  const int lane = static_cast<int>(threadIdx.x) % kMergeChannels;
  const int slice = static_cast<int>(threadIdx.x) / kMergeChannels;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kMergeChannels + lane;
  const bool works = channel < params.channels;
  const PartialMoments<A>& from = params.from;
  const double origin = works && params.partitions > 0 ? from.mean[channel] : 0;
  OffsetSums total = {};
#pragma unroll 4
  for (int64_t p = slice; works && p < params.partitions; p += kMergeSlices) {
    const int64_t at = p * params.channels + channel;
    const double count = from.count[p], offset = from.mean[at] - origin, sum = count * offset;
    total.add({count, sum, from.m2[at] + sum * offset});
  }
  shared[threadIdx.x] = total;
  for (int step = kMergeSlices / 2; step > 0; step /= 2) {
    __syncthreads();
    if (slice < step) shared[threadIdx.x].add(shared[threadIdx.x + step * kMergeChannels]);
  }
  if (!works || slice > 0) return;
  total = shared[lane];
  const double offset = total.sum / total.count;
  const double var = (total.square - total.sum * offset) / total.count;
  params.mean[channel] = static_cast<A>(origin + offset);
  params.var[channel] = static_cast<A>(var < 0 ? 0 : var);
}

// The second stage, from an op's workspace to its mean and var.
template <typename A, typename Args>
cudaError_t merge_partials(const Args& args, int64_t partitions, int64_t channels,
                           cudaStream_t stream) {
  const MergeParams<A> merge = {PartialMoments<A>(args.workspace, partitions, channels), partitions,
                                channels, static_cast<A*>(args.mean), static_cast<A*>(args.var)};
  return launch(&merge_moments_kernel<A>, ceil_div(channels, kMergeChannels), kMergeThreads, stream,
                merge);
}

}  // namespace mobilenet_ext::cuda
