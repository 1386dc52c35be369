// How whole-network inference is divided: the batch into groups of images, a block into tiles of
// rows or shares of channels. Everything follows from shapes and from the number of workers.
#pragma once

#include "kernels/cpu/partition.h"
#include "kernels/mobilenet.h"

namespace mobilenet_ext::cpu {
namespace {

constexpr int64_t kFloatBytes = sizeof(float);
// The maps of a group stay in the caches, and small maps still give products of many rows.
constexpr int64_t kGroupBytes = 2 * 1024 * 1024;
// A depthwise tile and the weights streaming past it share an L2 cache of 512 KB.
constexpr int64_t kTileBytes = 416 * 1024;
// A worker reads all of a block's weights for a tile: with fewer pixels it is better to share them.
constexpr int64_t kMinTilePixels = 48;
// Groups a worker gets at least when each takes whole groups: the last ones end unevenly.
constexpr int64_t kMinGroupsPerWorker = 4;

// Floats from a pixel to the next. Pixels that lie a multiple of 1 KB apart would meet in few sets
// of the L1 cache.
inline int64_t map_pitch(int64_t channels) {
  const int64_t padded = round_to_panels(channels);
  return padded % 256 == 0 ? padded + kPanel : padded;
}

// Floats of one image's output of `conv`, as `channels` channels.
inline int64_t map_floats(const ConvShape& conv, int64_t channels) {
  return conv.out_height * conv.out_width * map_pitch(channels);
}

// Part `index` of `size` in `parts` parts as even as can be.
inline Range share(int64_t index, int64_t parts, int64_t size) {
  return {index * size / parts, (index + 1) * size / parts};
}

inline const MobileNetLayer& last_layer(const MobileNetArgs& args) {
  return args.block_count ? args.blocks[args.block_count - 1] : args.stem;
}

struct BlockSchedule {
  int64_t rows, tiles, workers;
  int64_t in_panels, out_panels;
  bool fused;  // depthwise and pointwise by the same worker, tile by tile

  BlockSchedule(const MobileNetLayer& block, int64_t images, int64_t team)
      : rows(images * block.conv.out_height),
        workers(team),
        in_panels(round_to_panels(block.conv.channels) / kPanel),
        out_panels(round_to_panels(block.out_channels) / kPanel) {
    const int64_t row = block.conv.out_width * map_pitch(block.conv.channels) * kFloatBytes;
    tiles = min_of(rows, round_up(ceil_div(rows, max_of(1, kTileBytes / row)), workers));
    const int64_t pixels = rows * block.conv.out_width;
    fused = workers == 1 || (tiles % workers == 0 && pixels >= tiles * kMinTilePixels);
  }

  // Items of the two parts of a block, the second of which is empty when they are fused.
  int64_t items(int64_t part) const {
    if (fused) return part == 0 ? tiles : 0;
    return min_of(workers, part == 0 ? in_panels : out_panels);
  }
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
    int64_t floats = map_floats(args.stem.conv, args.stem.out_channels);
    for (int64_t i = 0; i < args.block_count; ++i) {
      floats = max_of(floats, map_floats(args.blocks[i].conv, args.blocks[i].out_channels));
    }
    const int64_t fitting = max_of(1, kGroupBytes / (floats * kFloatBytes));
    divide(min_of(fitting, ceil_div(batch, args.workers)));
    shared =
        args.workers > 1 && count % args.workers != 0 && count < kMinGroupsPerWorker * args.workers;
    if (shared) divide(fitting);
  }

  Range at(int64_t index) const { return share(index, count, batch); }

 private:
  void divide(int64_t most) {
    count = ceil_div(batch, max_of(1, most));
    images = count ? ceil_div(batch, count) : 0;
  }
};

}  // namespace
}  // namespace mobilenet_ext::cpu
