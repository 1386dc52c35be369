// How a [pixels, C] matrix is split: by its shape alone. A thread block stays with its block of
// channels and walks over tiles of pixels; in each tile a thread has kPixels of them, far enough
// apart that the threads of a warp touch neighbouring memory, and loads all before it uses any.
#pragma once

#include "kernels/cuda/partition.h"
#include "kernels/cuda/storage.h"

namespace mobilenet_ext::cuda {

// Thread blocks of a launch that keeps no sums: a few rounds of what a large GPU holds at a time,
// each with work enough to make up for loading its channels' parameters.
constexpr int64_t kMaxMapBlocks = 4096;

// Pixels whose loads are under way at the same time. With those of all threads of a multiprocessor
// they add up to 32 KB or more, twice what its share of the memory's bandwidth takes.
constexpr int kPixelsOfOneTensor = 4;
constexpr int kPixelsOfTwoTensors = 2;

struct TilePartition : ChannelPartition {
  int64_t pixels, channels, tiles;
};

inline TilePartition partition_tiles(int64_t pixels, int64_t channels, int lanes,
                                     int pixels_of_thread, int64_t most_blocks) {
  TilePartition p;
  static_cast<ChannelPartition&>(p) = partition_channels(channels, lanes);
  p.pixels = pixels;
  p.channels = channels;
  p.tiles = ceil_div(pixels, int64_t{pixels_of_thread} * p.positions);
  p.partitions = min_of(p.tiles, ceil_div(most_blocks, p.channel_blocks));
  return p;
}

// A thread's share of a tile.
template <int kPixels>
class Tile {
 public:
  __device__ Tile(const TilePartition& p, const Place& place, int64_t index)
      : left_(p.pixels - index * kPixels * p.positions - place.position),
        positions_(p.positions),
        first_((p.pixels - left_) * p.channels + place.channel),
        step_(p.positions * p.channels) {}

  __device__ bool has(int i) const { return i * positions_ < left_; }

  // Elements from the start of the matrix to the vector of pixel i.
  __device__ int64_t at(int i) const { return first_ + i * step_; }

  template <typename T, int kLanes>
  __device__ void load_from(const void* matrix, Pack<T, kLanes> (&to)[kPixels]) const {
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      to[i] = {};
      if (has(i)) to[i] = load<Pack<T, kLanes>>(static_cast<const T*>(matrix) + at(i));
    }
  }

 private:
  int64_t left_;  // pixels from the first on
  int64_t positions_, first_, step_;
};

// Calls f(tile) for every tile of this thread.
template <int kPixels, typename F>
inline __device__ void for_each_tile(const TilePartition& p, const Place& place, F f) {
  if (!place.works) return;
  for (int64_t i = place.partition; i < p.tiles; i += p.partitions) f(Tile<kPixels>(p, place, i));
}

}  // namespace mobilenet_ext::cuda
