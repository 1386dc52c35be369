// Mean and variance of every channel in two stages. A thread keeps sums of (x - shift) and its
// square, where its own first value as shift keeps them small if the mean is large against the
// deviation; its thread block adds them up as distances from its own mean, and leaves them in the
// workspace; a second kernel merges those in double. Every order is fixed: no atomics.
#pragma once

#include "kernels/cuda/channel_totals.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/packs.h"
#include "kernels/cuda/partition.h"

namespace mobilenet_ext::cuda {

// Of values' distances from an origin, and their squares. To add them up takes no division.
template <typename A>
struct OffsetSums {
  A count, sum, square;

  // The same of distances from an origin that lies `offset` before.
  __device__ OffsetSums moved(A offset) const {
    const A more = count * offset;
    return {count, sum + more, square + offset * (2 * sum + more)};
  }
  __device__ void add(const OffsetSums& other) {
    count += other.count;
    sum += other.sum;
    square += other.square;
  }
};

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

  // Sums of the distances from an origin, and of their squares.
  struct Distances {
    A sums[2][kLanes];
  };
  __device__ Distances from(const A* origin) const {
    Distances to = {};
    for (int v = 0; v < kLanes && count > 0; ++v) {
      const OffsetSums<A> own = {static_cast<A>(count), sum[v], square[v]};
      const OffsetSums<A> moved = own.moved(shift[v] - origin[v]);
      to.sums[0][v] = moved.sum;
      to.sums[1][v] = moved.square;
    }
    return to;
  }
};

// Sums of all thread blocks, of distances from an origin: the mean as far as an A can be it, which
// is not far enough where means are large against the deviation.
template <typename A>
struct PartialMoments {
  enum Value { kOrigin, kSum, kSquare, kValues };

  double* count;  // [partitions], the same for all channels
  PartialSums<A> sums;

  MOBILENET_EXT_HOST_DEVICE PartialMoments(void* workspace, int64_t partitions, int64_t channels)
      : count(static_cast<double*>(workspace)),
        sums{reinterpret_cast<A*>(count + partitions), partitions, kValues, channels} {}

  int64_t bytes() const {
    return sums.partitions * static_cast<int64_t>(sizeof(double)) + sums.bytes();
  }
};

// Adds up the sums of a thread block's positions: first for the mean, then from there. To merge
// moments instead takes divisions at each step, which is as long as the rest of a small map.
template <typename A, int kLanes>
inline __device__ void store_partials(const ShiftedSums<A, kLanes>& sums, const ChannelPartition& p,
                                      const Place& place, const PartialMoments<A>& to) {
  __shared__ TotalSlots<A, kLanes, 2> slots;
  __shared__ A origin[kMaxVectors * kLanes];
  __shared__ int counts[kThreads];
  A* const own = origin + place.vector * kLanes;
  for (int v = 0; v < kLanes && place.position == 0; ++v) own[v] = sums.shift[v];
  counts[threadIdx.x] = sums.count;
  __syncthreads();
  const auto count = [&] {
    int64_t pixels = 0;
    for (int q = 0; q < p.positions; ++q) pixels += counts[q * p.vectors];
    return pixels;
  };
  slots.set(sums.from(own).sums);
  slots.add_up(p, 1, [&](int, int c, A total) { origin[c] += total / static_cast<A>(count()); });
  __syncthreads();
  slots.set(sums.from(own).sums);
  slots.store(p, place.partition, 2, to.sums, PartialMoments<A>::kSum);
  if (!place.works || place.position > 0) return;
  A* const origins = to.sums.at(place.partition, PartialMoments<A>::kOrigin) + place.channel;
  for (int v = 0; v < kLanes; ++v) origins[v] = own[v];
  if (place.channel == 0) to.count[place.partition] = static_cast<double>(count());
}

// A thread block of the second stage reads 32 bytes of each row of partial sums, the least that
// memory delivers, and many rows at a time: there are few such blocks, and the next kernel waits
// for them.
constexpr int kMergeThreads = 1024;
constexpr int kMergeChannels = 8;
constexpr int kMergeSlices = kMergeThreads / kMergeChannels;

template <typename A>
struct MergeParams {
  PartialMoments<A> from;
  A* mean;  // [C]
  A* var;   // [C]
};

// In double: the number of partials must not cost precision. Distances are from the first origin.
// No values at all: NaN.
template <typename A>
__global__ void __launch_bounds__(kMergeThreads) merge_moments_kernel(MergeParams<A> params) {
  using Partial = PartialMoments<A>;
  __shared__ OffsetSums<double> shared[kMergeThreads];
  const int lane = static_cast<int>(threadIdx.x) % kMergeChannels;
  const int slice = static_cast<int>(threadIdx.x) / kMergeChannels;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kMergeChannels + lane;
  const PartialSums<A>& from = params.from.sums;
  const bool works = channel < from.channels;
  const auto read = [&](int64_t p, typename Partial::Value value) {
    return static_cast<double>(from.at(p, value)[channel]);
  };
  const double origin = works && from.partitions > 0 ? read(0, Partial::kOrigin) : 0;
  OffsetSums<double> total = {};
#pragma unroll 4
  for (int64_t p = slice; works && p < from.partitions; p += kMergeSlices) {
    const OffsetSums<double> own = {params.from.count[p], read(p, Partial::kSum),
                                    read(p, Partial::kSquare)};
    total.add(own.moved(read(p, Partial::kOrigin) - origin));
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
  const MergeParams<A> merge = {PartialMoments<A>(args.workspace, partitions, channels),
                                static_cast<A*>(args.mean), static_cast<A*>(args.var)};
  return launch(&merge_moments_kernel<A>, ceil_div(channels, kMergeChannels), kMergeThreads, stream,
                merge);
}

}  // namespace mobilenet_ext::cuda
