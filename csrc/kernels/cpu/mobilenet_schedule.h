// How whole-network inference is divided: the batch into groups of images, a block into tiles of
// rows and shares of channels. Everything follows from shapes and from the number of workers.
#pragma once

#include "kernels/cpu/gemm.inl.h"
#include "kernels/mobilenet.h"

namespace mobilenet_ext::cpu {
namespace {

constexpr int64_t kFloatBytes = sizeof(float);
// The maps of a group stay in the caches, and small maps still give products of many rows.
constexpr int64_t kGroupBytes = 2 * 1024 * 1024;
// A depthwise tile and the weights streaming past it share the L2 cache.
inline int64_t tile_bytes() { return l2_cache_bytes() / 16 * 13; }
// A worker reads its share of the weights for each tile: fewer pixels would not be worth it.
constexpr int64_t kMinTilePixels = 48;
// Groups a worker gets at least when each takes whole groups: the last ones end unevenly.
constexpr int64_t kMinGroupsPerWorker = 4;

// Floats of one image's output of `conv`, as `channels` channels.
inline int64_t map_floats(const ConvShape& conv, int64_t channels) {
  return conv.out_height * conv.out_width * row_pitch(channels);
}

// Floats of one image's largest map.
inline int64_t largest_map_floats(const MobileNetArgs& args) {
  int64_t floats = map_floats(args.stem.conv, args.stem.out_channels);
  for (int64_t i = 0; i < args.block_count; ++i) {
    floats = max_of(floats, map_floats(args.blocks[i].conv, args.blocks[i].out_channels));
  }
  return floats;
}

// Part `index` of `size` in `parts` parts as even as can be.
inline Range share(int64_t index, int64_t parts, int64_t size) {
  return {divide(index * size, parts), divide((index + 1) * size, parts)};
}

inline const MobileNetLayer& last_layer(const MobileNetArgs& args) {
  return args.block_count ? args.blocks[args.block_count - 1] : args.stem;
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

// Rows of the stem's output are cheap and many: a few items for each worker even out.
inline int64_t stem_items(const MobileNetLayer& stem, int64_t images, int64_t workers) {
  const int64_t rows = images * stem.conv.out_height;
  return workers == 1 ? 1 : min_of(rows, 2 * workers);
}

struct Groups {
  int64_t batch, images, count;
  bool shared;  // all workers share each group; otherwise each has groups of its own

  explicit Groups(const MobileNetArgs& args) : batch(args.batch) {
    const int64_t fitting = max_of(1, divide(kGroupBytes, largest_map_floats(args) * kFloatBytes));
    split(min_of(fitting, ceil_div(batch, args.workers)));
    shared =
        args.workers > 1 && count % args.workers != 0 && count < kMinGroupsPerWorker * args.workers;
    if (shared) split(fitting);
  }

  Range at(int64_t index) const { return share(index, count, batch); }

 private:
  void split(int64_t most) {
    count = ceil_div(batch, max_of(1, most));
    images = count ? ceil_div(batch, count) : 0;
  }
};

}  // namespace
}  // namespace mobilenet_ext::cpu
