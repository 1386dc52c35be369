// Sums per channel in two stages. Each thread has a slot for every sum in its thread block's shared
// memory, which takes what it summed in registers; the block adds up its slots and leaves partial
// sums in the workspace; a second kernel adds those in double. Every order is fixed: no atomics.
#pragma once

#include "kernels/cuda/packs.h"
#include "kernels/cuda/partition.h"

namespace mobilenet_ext::cuda {

// Partial sums of all thread blocks.
template <typename A>
struct PartialSums {
  A* data;  // [partitions, values, C]
  int64_t partitions, values, channels;

  MOBILENET_EXT_HOST_DEVICE A* at(int64_t partition, int64_t value) const {
    return data + (partition * values + value) * channels;
  }
  int64_t bytes() const { return partitions * values * channels * static_cast<int64_t>(sizeof(A)); }
};

// The slots of a thread block, for kValues sums of kLanes channels. To add to them after every
// strip keeps sums short in registers; to set them at the end leaves the memory for something else
// until then.
template <typename A, int kLanes, int kValues>
struct TotalSlots {
  Pack<A, kLanes> at[kValues][kThreads];

  // This thread's.
  __device__ void clear() {
    for (int i = 0; i < kValues; ++i) at[i][threadIdx.x] = {};
  }
  __device__ void set(const A (&sums)[kValues][kLanes]) {
    for (int i = 0; i < kValues; ++i) {
      for (int v = 0; v < kLanes; ++v) at[i][threadIdx.x].at[v] = sums[i][v];
    }
  }
  __device__ void add(int value, const A (&sums)[kLanes]) {
    Pack<A, kLanes>& slot = at[value][threadIdx.x];
    for (int v = 0; v < kLanes; ++v) slot.at[v] += sums[v];
  }

  // Adds up the positions of the block: calls take(value, c, total) for each of the first `values`
  // sums and for every channel c of the block. All threads of the block call. Where sums are few,
  // threads share each: one takes every `sharers`th position, and leaves its total at its first.
  template <typename Take>
  __device__ void add_up(const ChannelPartition& p, int values, Take take) {
    const int width = p.vectors * kLanes, sums = values * width;
    int sharers = 1;
    while (2 * sharers * sums <= kThreads && 2 * sharers <= p.positions) sharers *= 2;
    int positions = p.positions;
    __syncthreads();
    if (sharers > 1) {
      for (int i = static_cast<int>(threadIdx.x); i < sharers * sums; i += kThreads) {
        const int share = i / sums, value = i % sums / width, c = i % width;
        const A total = sum(p, value, c, share, sharers, positions);
        at[value][share * p.vectors + c / kLanes].at[c % kLanes] = total;
      }
      positions = sharers;
      __syncthreads();
    }
    for (int i = static_cast<int>(threadIdx.x); i < sums; i += kThreads) {
      const int value = i / width, c = i % width;
      take(value, c, sum(p, value, c, 0, 1, positions));
    }
  }

  // Adds up, and stores the totals from value `first` of the partial sums on.
  __device__ void store(const ChannelPartition& p, int64_t partition, int values,
                        const PartialSums<A>& to, int64_t first) {
    const int64_t channel = (blockIdx.x % p.channel_blocks) * p.vectors * kLanes;
    add_up(p, values, [&](int value, int c, A total) {
      if (channel + c < to.channels) to.at(partition, first + value)[channel + c] = total;
    });
  }

 private:
  // Of positions first, first + step, ... before `end`.
  __device__ A sum(const ChannelPartition& p, int value, int c, int first, int step,
                   int end) const {
    A total = 0;
    for (int q = first; q < end; q += step) {
      total += at[value][q * p.vectors + c / kLanes].at[c % kLanes];
    }
    return total;
  }
};

// A thread block of the second stage reads 32 bytes of each row of partials, the least that memory
// delivers, and many rows at a time: the next kernel waits for it.
constexpr int kSumThreads = 256;
constexpr int kSumChannels = 8;
constexpr int kSumSlices = kSumThreads / kSumChannels;

// Calls store(value, channel, total) for each of the sums, in double: the number of partials must
// not cost precision. The grid: values x channel blocks.
template <typename A, typename Store>
inline __device__ void sum_partials(const PartialSums<A>& from, int64_t channel_blocks,
                                    Store store) {
  __shared__ double shared[kSumThreads];
  const int lane = static_cast<int>(threadIdx.x) % kSumChannels;
  const int slice = static_cast<int>(threadIdx.x) / kSumChannels;
  const int64_t value = blockIdx.x / channel_blocks;
  const int64_t channel = (blockIdx.x % channel_blocks) * kSumChannels + lane;
  const bool works = channel < from.channels;
  double total = 0;
  for (int64_t p = slice; works && p < from.partitions; p += kSumSlices) {
    total += static_cast<double>(from.at(p, value)[channel]);
  }
  shared[threadIdx.x] = total;
  for (int step = kSumSlices / 2; step > 0; step /= 2) {
    __syncthreads();
    if (slice < step) shared[threadIdx.x] += shared[threadIdx.x + step * kSumChannels];
  }
  if (works && slice == 0) store(value, channel, shared[lane]);
}

}  // namespace mobilenet_ext::cuda
