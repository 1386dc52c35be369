// How whole-network inference is divided: the batch into groups of images, the layers into a front
// and blocks, a block into tiles of rows and shares of channels. Everything follows from shapes and
// from the number of workers. (Of an uneven batch device_cpu.h makes two, each divided by itself.)
#pragma once

#include "kernels/cpu/gemm.inl.h"
#include "kernels/mobilenet.h"

namespace mobilenet_ext::cpu {
namespace {

constexpr int64_t kFloatBytes = sizeof(float);
// Each group of images reads all weights once more. So the largest map of all its images may be a
// quarter of the weights, within these bounds.
constexpr int64_t kMinGroupBytes = 512 * 1024, kMaxGroupBytes = 2 * 1024 * 1024;
// A depthwise tile and the weights streaming past it share the L2 cache.
inline int64_t tile_bytes() { return l2_cache_bytes() / 16 * 13; }
// A worker reads its share of the weights for each tile: fewer pixels would not be worth it, more
// would leave the 8 x 8 map of a small image to one tile, whose depthwise part every share repeats.
constexpr int64_t kMinTilePixels = 32;

// Larger maps go from layer to layer in bands of rows, unless the weights that each band reads
// again are large too.
inline int64_t whole_map_bytes() { return l2_cache_bytes() / 2; }
inline int64_t band_weight_bytes() { return l2_cache_bytes() / 8; }
// Rows of the front's last map that a worker gets at least where they share it: at the edges of its
// part rows are computed twice.
constexpr int64_t kMinFrontRows = 8;

// Layer 0 is the stem.
inline const MobileNetLayer& layer_at(const MobileNetArgs& args, int64_t layer) {
  return layer ? args.blocks[layer - 1] : args.stem;
}

// Floats of a row of a layer's output, and of one image's.
inline int64_t row_floats(const MobileNetLayer& layer) {
  return layer.conv.out_width * row_pitch(layer.out_channels);
}
inline int64_t map_floats(const MobileNetLayer& layer) {
  return layer.conv.out_height * row_floats(layer);
}

// Floats of one image's largest map from the front's on.
inline int64_t largest_map_floats(const MobileNetArgs& args, int64_t front) {
  int64_t floats = 0;
  for (int64_t i = front; i <= args.block_count; ++i) {
    floats = max_of(floats, map_floats(layer_at(args, i)));
  }
  return floats;
}

// Part `index` of `size` in `parts` parts as even as can be.
inline Range share(int64_t index, int64_t parts, int64_t size) {
  return {divide(index * size, parts), divide((index + 1) * size, parts)};
}

inline const MobileNetLayer& last_layer(const MobileNetArgs& args) {
  return layer_at(args, args.block_count);
}

// A block's items: tiles of rows x shares of output channels. An item computes the depthwise output
// of its tile and its share of the pointwise product. Where there are too few rows for all workers,
// they share the channels, each with a depthwise tile of its own: 9 multiply-adds more for each of
// the C' / shares that follow, and cheaper than waiting for each other.
struct BlockSchedule {
  int64_t rows, tiles, shares;
  int64_t tile_floats;  // of the largest depthwise tile

  BlockSchedule(const MobileNetLayer& block, int64_t images, int64_t workers)
      : rows(images * block.conv.out_height) {
    const int64_t row = block.conv.out_width * row_pitch(block.conv.channels);
    const int64_t fitting = max_of(1, divide(tile_bytes(), row * kFloatBytes));
    const int64_t fewest = ceil_div(rows, fitting);
    tile_floats = min_of(rows, fitting) * row;
    const int64_t most = max_of(1, rows * block.conv.out_width / kMinTilePixels);
    tiles = workers == 1 ? fewest : round_up(fewest, workers);
    if (tiles > most) tiles = max_of(fewest, most);
    tiles = min_of(tiles, rows);
    const int64_t panels = round_to_panels(block.out_channels) / kPanel;
    shares = min_of(panels, ceil_div(workers, tiles));
  }

  int64_t items() const { return tiles * shares; }
};

inline int64_t group_bytes(const MobileNetArgs& args) {
  int64_t weights = args.classifier ? last_layer(args).out_channels * args.outputs : 0;
  for (int64_t i = 0; i < args.block_count; ++i) {
    weights += args.blocks[i].conv.channels * args.blocks[i].out_channels;
  }
  return min_of(max_of(weights * kFloatBytes / 4, kMinGroupBytes), kMaxGroupBytes);
}

// Groups of images, which each worker takes through the network by itself. With fewer images than
// workers all share each group.
struct GroupSplit {
  int64_t count, images;  // images of the largest group
  bool shared;

  GroupSplit(const MobileNetArgs& args, int64_t front) : shared(args.batch < args.workers) {
    const int64_t takers = shared ? 1 : args.workers;
    const int64_t map_bytes = largest_map_floats(args, front) * kFloatBytes;
    const int64_t fitting = max_of(1, divide(group_bytes(args), map_bytes));
    count = min_of(args.batch, takers * ceil_div(ceil_div(args.batch, takers), fitting));
    images = ceil_div(args.batch, max_of(1, count));
  }
};

// Blocks that go with the stem: all up to the last that reads a large map.
inline int64_t front_blocks(const MobileNetArgs& args) {
  int64_t blocks = 0;
  for (int64_t i = 0; i < args.block_count; ++i) {
    const MobileNetLayer& block = args.blocks[i];
    const int64_t weights = block.conv.channels * block.out_channels;
    if (weights * kFloatBytes > band_weight_bytes()) break;
    if (map_floats(layer_at(args, i)) * kFloatBytes > whole_map_bytes()) blocks = i + 1;
  }
  return blocks;
}

inline void plan_mobilenet(MobileNetArgs& args) {
  int64_t front = front_blocks(args);
  GroupSplit groups(args, front);
  const int64_t rows = groups.images * layer_at(args, front).conv.out_height;
  if (groups.shared && rows < kMinFrontRows * args.workers) {
    front = 0;
    groups = GroupSplit(args, front);
  }
  args.plan = {groups.count, groups.images, groups.shared, front};
}

inline Range group_at(const MobileNetArgs& args, int64_t index) {
  return share(index, args.plan.groups, args.batch);
}

}  // namespace
}  // namespace mobilenet_ext::cpu
