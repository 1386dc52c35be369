// How a convolution is split among thread blocks and threads: by the shape alone. A thread computes
// strips: kColumns neighbouring columns of one vector of channels, down a band of rows. They are
// the columns and rows of the map that a kernel writes. A thread block stays with its block of
// channels (in NCHW a single one, whose planes are small enough for neighbours to share lines of
// the cache), so that weights and sums stay in registers, and walks over tiles: as many
// neighbouring strips as it has threads for.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/conv_shape.h"
#include "kernels/cuda/map_vectors.h"

namespace mobilenet_ext::cuda {

constexpr int kThreads = 128;
// Vectors of channels in a block of channels. 16 of them are 128 bytes of a pixel or more, a whole
// line of the cache.
constexpr int kMaxVectors = 16;
// Divides all map sizes of MobileNet at 224 x 224 (112, 56, 28, 14; 7 is its half), and re-reads
// only two border rows in 16, which the L2 cache serves.
constexpr int64_t kMaxRows = 14;
// Below this many threads a large GPU runs dry; strips are cut shorter instead.
constexpr int64_t kWantedThreads = 128 * 1024;
// Thread blocks of a launch: many enough to even out their ends, few enough to set up seldom.
constexpr int64_t kMaxBlocks = 16 * 1024;
// Of one that keeps statistics or other sums, for each block that a multiprocessor is to hold at a
// time: two rounds on 132 of them. Each block's sums take a while to add up at its end, and are
// partial results for a second stage to read.
constexpr int64_t kSumBlocks = 264;

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The maps to be cut into strips.
struct StripMap {
  int64_t batch, channels, height, width;
};

inline StripMap output_map(const ConvShape& s) {
  return {s.batch, s.channels, s.out_height, s.out_width};
}

inline StripMap input_map(const ConvShape& s) {
  return {s.batch, s.channels, s.in_height, s.in_width};
}

inline MapStrides output_strides(Layout layout, const ConvShape& s) {
  return strides_of(layout, s.channels, s.out_height, s.out_width);
}
inline MapStrides input_strides(Layout layout, const ConvShape& s) {
  return strides_of(layout, s.channels, s.in_height, s.in_width);
}

// What a thread block needs to stay with its channels.
struct ChannelPartition {
  int64_t channel_blocks;  // thread blocks side by side
  int64_t partitions;      // thread blocks that share the pixels of one block of channels
  int vectors;             // in a block of channels
  int positions;           // threads for each of them
};

// Leaves `partitions` open.
inline ChannelPartition partition_channels(Layout layout, int64_t channels, int lanes) {
  if (layout == Layout::kNchw) return {channels, 0, 1, kThreads};
  ChannelPartition p = {};
  const int64_t vectors = ceil_div(channels, lanes);
  p.channel_blocks = ceil_div(vectors, kMaxVectors);
  p.vectors = static_cast<int>(ceil_div(vectors, p.channel_blocks));
  p.positions = kThreads / p.vectors;
  return p;
}

struct ConvPartition : ChannelPartition {
  int64_t height;       // of a map
  int64_t rows, bands;  // rows in a strip; strips from top to bottom
  int64_t columns;      // strips from left to right
  int64_t strips;       // in all images
};

// `most_blocks`: of the launch, unless there are more blocks of channels.
inline ConvPartition partition_conv(const StripMap& map, Layout layout, int lanes,
                                    int columns_per_strip, int64_t most_blocks) {
  ConvPartition p;
  static_cast<ChannelPartition&>(p) = partition_channels(layout, map.channels, lanes);
  const int64_t vectors = ceil_div(map.channels, lanes);
  p.height = map.height;
  p.columns = ceil_div(map.width, columns_per_strip);
  p.rows = min_of(kMaxRows, map.height);
  const int64_t threads_per_band = map.batch * p.columns * vectors;
  while (p.rows > 1 && ceil_div(map.height, p.rows) * threads_per_band < kWantedThreads) {
    p.rows = ceil_div(p.rows, 2);
  }
  p.bands = ceil_div(map.height, p.rows);
  p.rows = ceil_div(map.height, p.bands);
  p.strips = map.batch * p.bands * p.columns;
  p.partitions = min_of(ceil_div(p.strips, p.positions), ceil_div(most_blocks, p.channel_blocks));
  return p;
}

// Where this thread works.
struct Place {
  int64_t partition, channel;
  int vector, position;  // within the thread block
  bool works;            // some threads of a block may be left over

  __device__ Place(const ChannelPartition& p, int64_t channels, int lanes) {
    partition = blockIdx.x / p.channel_blocks;
    vector = static_cast<int>(threadIdx.x) % p.vectors;
    position = static_cast<int>(threadIdx.x) / p.vectors;
    channel = ((blockIdx.x % p.channel_blocks) * p.vectors + vector) * lanes;
    works = position < p.positions && channel < channels;
  }
};

// A strip's first pixel, and its rows.
struct Strip {
  int64_t image, row, column;
  int rows;
};

inline __device__ Strip strip_at(const ConvPartition& p, int64_t index, int columns_per_strip) {
  const int64_t band = index / p.columns;
  Strip strip;
  strip.column = (index - band * p.columns) * columns_per_strip;
  strip.image = band / p.bands;
  strip.row = (band - strip.image * p.bands) * p.rows;
  const int64_t left = p.height - strip.row;
  strip.rows = static_cast<int>(left < p.rows ? left : p.rows);
  return strip;
}

// A bit for each of `count` places from `first` on that is in [0, size).
inline __device__ unsigned int bits_inside(int64_t first, int count, int64_t size) {
  const int64_t begin = first < 0 ? -first : 0, end = size - first;
  if (begin >= count || end <= begin) return 0;
  const unsigned int below_end = (1u << (end < count ? end : count)) - 1;
  return below_end & ~((1u << begin) - 1);
}

// Calls run(strip) for every strip of this thread.
template <typename F>
inline __device__ void for_each_strip(const ConvPartition& p, const Place& place, int columns,
                                      F run) {
  if (!place.works) return;
  int64_t index = place.partition * p.positions + place.position;
  for (; index < p.strips; index += p.partitions * p.positions) run(strip_at(p, index, columns));
}

}  // namespace mobilenet_ext::cuda
