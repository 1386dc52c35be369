// How the pixels of a map are split: by its shape alone. A thread block stays with its block of
// channels and walks over tiles of pixels, or of vectors of pixels; in each tile a thread has
// kPixels of them, far enough apart that the threads of a warp touch neighbouring memory, and loads
// all before it uses any.
#pragma once

#include <type_traits>

#include "kernels/cuda/map_vectors.h"
#include "kernels/cuda/partition.h"

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
  int64_t plane;                     // pixels side by side; 1: NHWC
  int64_t step_images, step_pixels;  // from one pixel of a thread's tile to the next
};

// `pixels` and `plane` count vectors of V::kPack pixels.
template <typename V>
TilePartition partition_tiles(int64_t pixels, int64_t channels, int64_t plane, int pixels_of_thread,
                              int64_t most_blocks) {
  TilePartition p;
  const Layout layout = plane > 1 ? Layout::kNchw : Layout::kNhwc;
  static_cast<ChannelPartition&>(p) = partition_channels(layout, channels, V::kLanes);
  p.pixels = pixels / V::kPack;
  p.channels = channels;
  p.tiles = ceil_div(p.pixels, int64_t{pixels_of_thread} * p.positions);
  p.plane = plane / V::kPack;
  p.step_images = p.positions / p.plane;
  p.step_pixels = p.positions % p.plane;
  p.partitions = min_of(p.tiles, ceil_div(most_blocks, p.channel_blocks));
  return p;
}

// A thread's share of a tile, of vectors of channels.
template <int kPixels>
class MatrixTile {
 public:
  __device__ MatrixTile(const TilePartition& p, const Place& place, int64_t index)
      : left_(p.pixels - index * kPixels * p.positions - place.position),
        positions_(p.positions),
        first_((p.pixels - left_) * p.channels + place.channel),
        step_(p.positions * p.channels) {}

  __device__ bool has(int i) const { return i * positions_ < left_; }

  // Elements from the start of the map to the vector of pixel i.
  __device__ int64_t at(int i) const { return first_ + i * step_; }

 private:
  int64_t left_;  // pixels from the first on
  int64_t positions_, first_, step_;
};

// The same where a channel has a plane of pixels in each image. Counted on from pixel to pixel, as
// divisions would cost more than all the rest.
template <typename V, int kPixels>
class PlaneTile {
 public:
  __device__ PlaneTile(const TilePartition& p, const Place& place, int64_t index)
      : positions_(p.positions) {
    const int64_t first = index * kPixels * p.positions + place.position;
    left_ = p.pixels - first;
    int64_t image = first / p.plane, pixel = first - image * p.plane;
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      at_[i] = ((image * p.channels + place.channel) * p.plane + pixel) * V::kPack;
      image += p.step_images;
      pixel += p.step_pixels;
      if (pixel < p.plane) continue;
      pixel -= p.plane;
      ++image;
    }
  }

  __device__ bool has(int i) const { return i * positions_ < left_; }
  __device__ int64_t at(int i) const { return at_[i]; }

 private:
  int64_t left_, positions_;
  int64_t at_[kPixels];
};

template <typename V, int kPixels>
using TileOf = std::conditional_t<(V::kLanes > 1), MatrixTile<kPixels>, PlaneTile<V, kPixels>>;

// The vectors of a tile, as they were loaded.
template <typename V, int kPixels, typename Tile>
inline __device__ void load_tile(const Tile& tile, const void* map,
                                 Word<Vector<V>> (&to)[kPixels]) {
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    to[i] = {};
    if (tile.has(i))
      to[i] = load_word<Vector<V>>(static_cast<const typename V::T*>(map) + tile.at(i));
  }
}

// Calls f(tile) for every tile of this thread.
template <typename V, int kPixels, typename F>
inline __device__ void for_each_tile(const TilePartition& p, const Place& place, F f) {
  if (!place.works) return;
  using Tile = TileOf<V, kPixels>;
  for (int64_t i = place.partition; i < p.tiles; i += p.partitions) f(Tile(p, place, i));
}

}  // namespace mobilenet_ext::cuda
