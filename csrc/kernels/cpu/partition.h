// How the work of an op is split into items: by the shape and the size of the L2 cache, so that
// every partial sum is the same for any number of threads. Images first, then rows, then channels.
#pragma once

#include "kernels/conv_shape.h"
#include "kernels/cpu/kernels.h"

namespace mobilenet_ext::cpu {
namespace {

// An item of this many elements runs for 15 to 30 us, against less than 1 us to take it and some
// partial sums to merge.
constexpr int64_t kItemElements = 16 * 1024;
// Bounds the memory of partial sums and still feeds a large server.
constexpr int64_t kMaxItems = 128;
// A cache line of floats; a multiple of every vector's lanes.
constexpr int64_t kChannelGrain = 16;
// Two rings of rows that together fit in half of the L2 cache leave room for the data streaming by.
inline int64_t ring_bytes() { return l2_cache_bytes() / 4; }
// A band re-reads K - 1 rows of its neighbour's: at most a fifth of its own.
constexpr int64_t kMinRowsPerItem = 10;
// A block of channels reads memory in runs, which the hardware follows badly: only where there are
// fewer items than this.
constexpr int64_t kMinChannelsPerItem = 64, kMinItemsWithoutBlocks = 32;

constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
// a / b of a >= 0 and b > 0: in 32 bits where they will do. In 64 bits many CPUs take 40 to 90
// cycles for it, as long as a small map's whole row.
inline int64_t divide(int64_t a, int64_t b) {
  if (static_cast<uint64_t>(a | b) >> 32) return a / b;
  return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
}
inline int64_t ceil_div(int64_t a, int64_t b) { return divide(a + b - 1, b); }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

inline int64_t wanted_items(int64_t elements) {
  return max_of(1, min_of(kMaxItems, elements / kItemElements));
}

// A convolution's items: groups of images x bands of output rows x blocks of channels.
struct ConvPartition {
  int64_t images, groups;    // images in a group, groups
  int64_t rows, bands;       // output rows in a band, bands
  int64_t channels, blocks;  // channels in a block, blocks

  int64_t partials() const { return groups * bands; }
  int64_t items() const { return partials() * blocks; }
};

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

inline Range chunk(int64_t index, int64_t chunk_size, int64_t size) {
  const int64_t begin = min_of(index * chunk_size, size);
  return {begin, min_of(begin + chunk_size, size)};
}

// `ring_pixels`: pixels an item keeps in its rings of rows.
inline ConvPartition partition_conv(const ConvShape& s, int64_t ring_pixels) {
  const int64_t wanted = wanted_items(s.batch * s.out_height * s.out_width * s.channels);
  const int64_t fitting =
      max_of(kChannelGrain, ring_bytes() / (4 * ring_pixels) / kChannelGrain * kChannelGrain);
  ConvPartition p;
  p.blocks = ceil_div(s.channels, fitting);
  p.images = max_of(1, s.batch * p.blocks / wanted);
  p.groups = ceil_div(s.batch, p.images);
  const int64_t most_bands = max_of(1, s.out_height / kMinRowsPerItem);
  p.bands = min_of(most_bands, ceil_div(wanted, max_of(1, p.groups * p.blocks)));
  const int64_t most_blocks = ceil_div(s.channels, kMinChannelsPerItem);
  const int64_t missing =
      ceil_div(min_of(wanted, kMinItemsWithoutBlocks), max_of(1, p.groups * p.bands));
  p.blocks = max_of(p.blocks, min_of(missing, most_blocks));
  p.rows = ceil_div(s.out_height, p.bands);
  p.bands = ceil_div(s.out_height, p.rows);
  p.channels = round_up(ceil_div(s.channels, p.blocks), kChannelGrain);
  p.blocks = ceil_div(s.channels, p.channels);
  return p;
}

// An element-wise op's items: runs of pixels.
struct PixelPartition {
  int64_t pixels, items;
};

inline PixelPartition partition_pixels(int64_t pixels, int64_t channels) {
  const int64_t size = max_of(1, ceil_div(pixels, wanted_items(pixels * channels)));
  return {size, ceil_div(pixels, size)};
}

}  // namespace
}  // namespace mobilenet_ext::cpu
