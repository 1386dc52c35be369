// The front of whole-network inference: the stem, and with it the blocks up to the last that reads
// a map too large to stay in the L2 cache. They are not computed one after the other but in bands
// of a few rows: a band of the front's last map asks the layer before for the rows that it reads,
// which asks the one before that. What is between stays in rings of rows in the L2 cache, where
// whole maps would be written to memory and read again. A network of small maps has a front of the
// stem alone.
#pragma once

#include "kernels/cpu/memory.h"
#include "kernels/cpu/mobilenet_block.inl.h"
#include "kernels/cpu/mobilenet_stem.inl.h"

namespace mobilenet_ext::cpu {
namespace {

// Rows of the last map in a band, if the rings then take no more than half of the L2 cache.
constexpr int64_t kMaxBand = 4;

// A layer on its way through an image.
struct FrontLayer {
  MapRows rows;
  int64_t band;  // rows computed at a time
  Range left;    // rows that are still to be computed
};

// Input rows that output rows read.
inline Range rows_read(const ConvShape& s, Range rows) {
  const int64_t first = rows.begin * s.stride - s.pad_top;
  const int64_t last = (rows.end - 1) * s.stride - s.pad_top + 2;
  return {max_of(first, 0), min_of(last + 1, s.in_height)};
}

// The layers of a front, and in `scratch` their rings and a depthwise tile.
struct Front {
  const MobileNetArgs& args;
  FrontLayer layers[kMaxMobileNetBlocks + 1];
  float* tile;
  void* stem_scratch;
  int64_t bytes;

  Front(const MobileNetArgs& of, void* scratch) : args(of) {
    int64_t band = kMaxBand;
    lay_out(band, nullptr);
    while (band > 1 && bytes > l2_cache_bytes() / 2) lay_out(band /= 2, nullptr);
    lay_out(band, scratch);
  }

  int64_t last() const { return args.plan.front; }

 private:
  void lay_out(int64_t band, void* scratch) {
    Arena arena(scratch);
    int64_t tile_floats = 0;
    for (int64_t i = last(); i >= 0; --i) {
      const MobileNetLayer& layer = layer_at(args, i);
      FrontLayer& to = layers[i];
      if (i < last()) {
        const int64_t stride = layer_at(args, i + 1).conv.stride, read = (band - 1) * stride + 3;
        band *= stride;
        to.rows.count = round_up(read + band - 1, band);
        to.rows.data = arena.take<float>(to.rows.count * row_floats(layer));
      }
      to.band = last() ? band : layer.conv.out_height;
      to.rows.row_floats = row_floats(layer);
      if (i > 0) {
        const int64_t tile_row = layer.conv.out_width * row_pitch(layer.conv.channels);
        tile_floats = max_of(tile_floats, band * tile_row);
      }
    }
    tile = arena.take<float>(tile_floats);
    stem_scratch = arena.take<char>(StemRing(args, nullptr).bytes);
    bytes = arena.bytes();
  }
};

// Computes a layer's rows of an image up to `end`.
template <Activation kActivation>
void front_rows(Front& front, int64_t image, int64_t index, int64_t end) {
  const MobileNetLayer& layer = layer_at(front.args, index);
  const ConvShape& s = layer.conv;
  FrontLayer& to = front.layers[index];
  while (to.left.begin < end) {
    const Range rows{to.left.begin, min_of(to.left.begin + to.band, to.left.end)};
    float* const output = to.rows.at(rows.begin);
    if (index == 0) {
      stem_rows<kActivation>(front.args, image, rows, output, front.stem_scratch);
    } else {
      front_rows<kActivation>(front, image, index - 1, rows_read(s, rows).end);
      block_rows<kActivation>(layer, front.layers[index - 1].rows, rows, all_panels(layer),
                              layer.point_weight, front.tile, output);
    }
    to.left.begin = rows.end;
  }
}

// Rows of the front's last map, counted through all images from `first_image` on, into `map`.
template <Activation kActivation>
void run_front(const MobileNetArgs& args, int64_t first_image, Range rows, float* map,
               void* scratch) {
  Front front(args, scratch);
  StemRing(args, front.stem_scratch).start(args.stem.conv.channels);
  FrontLayer& last = front.layers[front.last()];
  const int64_t height = layer_at(args, front.last()).conv.out_height;
  for (int64_t image = divide(rows.begin, height); image * height < rows.end; ++image) {
    const int64_t before = image * height;
    last.rows.data = map + before * last.rows.row_floats;
    last.rows.begin = 0;
    last.rows.count = height;
    last.left = {max_of(rows.begin - before, 0), min_of(rows.end - before, height)};
    for (int64_t i = front.last(); i > 0; --i) {
      FrontLayer& input = front.layers[i - 1];
      input.left = rows_read(layer_at(args, i).conv, front.layers[i].left);
      input.rows.begin = input.left.begin;
    }
    front_rows<kActivation>(front, first_image + image, front.last(), last.left.end);
  }
}

// Rows of the stem alone are cheap and many: a few items for each worker even out.
inline int64_t front_items(const MobileNetArgs& args, int64_t images, int64_t workers) {
  if (workers == 1) return 1;
  const int64_t rows = images * layer_at(args, args.plan.front).conv.out_height;
  return min_of(rows, args.plan.front ? workers : 2 * workers);
}

}  // namespace
}  // namespace mobilenet_ext::cpu
