// The stem of whole-network inference: act(conv(image) + bias), a dense 3 x 3 convolution, straight
// from an image of any strides. The three input rows of an output row are staged as padded NHWC
// pixels, where the patches of neighbouring outputs are rows of a matrix that overlap: the product
// reads them in place, one row of taps at a time.
#pragma once

#include "kernels/cpu/gemm.inl.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/mobilenet_schedule.h"

namespace mobilenet_ext::cpu {
namespace {

// Staged rows: row r of the padded image lies in slot r % 3.
struct StemRing {
  float* data;
  int64_t row_floats;
  int64_t bytes;

  StemRing(const ConvShape& s, void* scratch) {
    Arena arena(scratch);
    row_floats = ((s.out_width - 1) * s.stride + 3) * s.channels;
    data = arena.take<float>(3 * row_floats);
    bytes = arena.bytes();
  }
  float* row(int64_t r) const { return data + r % 3 * row_floats; }
};

// Stages row r of padded image n.
inline void stage_stem_row(const MobileNetArgs& args, int64_t n, int64_t r, const StemRing& ring) {
  const ConvShape& s = args.stem.conv;
  const int64_t* strides = args.image_strides;
  const int64_t y = r - s.pad_top;
  float* to = ring.row(r);
  __builtin_memset(to, 0, sizeof(float) * ring.row_floats);
  if (y < 0 || y >= s.in_height) return;
  const float* from = args.image + n * strides[0] + y * strides[2];
  const int64_t width = min_of(s.in_width, divide(ring.row_floats, s.channels) - s.pad_left);
  to += s.pad_left * s.channels;
  if (strides[1] == 1 && strides[3] == s.channels) {
    __builtin_memcpy(to, from, sizeof(float) * width * s.channels);
    return;
  }
  for (int64_t c = 0; c < s.channels; ++c) {
    for (int64_t x = 0; x < width; ++x) {
      to[x * s.channels + c] = from[c * strides[1] + x * strides[3]];
    }
  }
}

template <int kRows, int kWidth, Activation kActivation>
void stem_tile(const MobileNetLayer& stem, const StemRing& ring, int64_t top, int64_t x,
               int64_t panel, float* to) {
  const int64_t channels = stem.conv.channels, depth = stem_depth(channels);
  const int64_t panel_stride = depth * kPanel, step = stem.conv.stride * channels;
  const float* weight = stem.weight + panel * panel_stride;
  Tile<float, kRows, 1, kWidth> tile;
  tile.start(stem.weight + round_to_panels(stem.out_channels) * depth + panel * kPanel);
  for (int64_t y = 0; y < 3; ++y) {
    tile.add(ring.row(top + y) + x * step, step, 1, weight + y * 3 * channels * kPanel,
             panel_stride, 3 * channels);
  }
  tile.template finish<kActivation>(to + panel * kPanel, row_pitch(stem.out_channels));
}

// A row of outputs in tiles whose panels have kWidth vectors; narrower panels leave registers for
// more rows. Channels beyond the vectors of a panel are left as they are: nobody uses them.
template <int kWidth, Activation kActivation>
void stem_row(const MobileNetLayer& stem, const StemRing& ring, int64_t top, float* to) {
  constexpr int kMostRows = most_tile_rows(kWidth, 12);
  const RowTiles tiles(stem.conv.out_width, kMostRows);
  const int64_t panels = round_to_panels(stem.out_channels) / kPanel;
  for (int64_t t = 0; t < tiles.count; ++t) {
    const int64_t x = tiles.begin(t);
    dispatch_rows<kMostRows>(tiles.size(t), [&](auto rows) {
      for (int64_t panel = 0; panel < panels; ++panel) {
        stem_tile<decltype(rows)::value, kWidth, kActivation>(
            stem, ring, top, x, panel, to + x * row_pitch(stem.out_channels));
      }
    });
  }
}

// Output rows [rows.begin, rows.end), counted through all images from `first_image` on, of the map
// `output` of those images.
template <Activation kActivation>
void stem_rows(const MobileNetArgs& args, int64_t first_image, Range rows, float* output,
               void* scratch) {
  const MobileNetLayer& stem = args.stem;
  const ConvShape& s = stem.conv;
  const StemRing ring(s, scratch);
  const bool narrow = stem.out_channels <= kLanes<float>;
  int64_t staged = 0;
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const int64_t image = divide(r, s.out_height), top = (r - image * s.out_height) * s.stride;
    if (r == rows.begin || top == 0) staged = top;
    for (staged = max_of(staged, top); staged < top + 3; ++staged) {
      stage_stem_row(args, first_image + image, staged, ring);
    }
    float* to = output + r * s.out_width * row_pitch(stem.out_channels);
    if (narrow) {
      stem_row<1, kActivation>(stem, ring, top, to);
    } else {
      stem_row<kPanelVectors<float>, kActivation>(stem, ring, top, to);
    }
  }
}

}  // namespace
}  // namespace mobilenet_ext::cpu
