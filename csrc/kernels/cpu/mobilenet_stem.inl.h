// The stem of whole-network inference: act(conv(image) + bias), a dense 3 x 3 convolution, straight
// from an image of any strides. The three input rows of an output row are staged with their padding
// and in the image's own order, pixel by pixel or channel by channel, so that staging copies whole
// rows. There the patches of neighbouring outputs are rows of a matrix that overlap, a few elements
// apart: the product reads them in place.
#pragma once

#include "kernels/cpu/gemm.inl.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/mobilenet_schedule.h"

namespace mobilenet_ext::cpu {
namespace {

// Staged rows: row r of the padded image lies in slot r % 3.
struct StemRing {
  float* data;
  int64_t pixels;                        // of a row
  int64_t pixel_stride, channel_stride;  // in a row
  int64_t* offsets;  // of a patch's elements by the slot of its first row: [3, depth]
  int64_t bytes;

  StemRing(const MobileNetArgs& args, void* scratch) {
    const ConvShape& s = args.stem.conv;
    const bool interleaved = args.image_strides[1] == 1;
    Arena arena(scratch);
    pixels = (s.out_width - 1) * s.stride + 3;
    pixel_stride = interleaved ? s.channels : 1;
    channel_stride = interleaved ? 1 : pixels;
    data = arena.take<float>(3 * pixels * s.channels);
    offsets = arena.take<int64_t>(3 * stem_depth(s.channels));
    bytes = arena.bytes();
  }

  // All zeros, as padding stays: rows are staged between it.
  void start(int64_t channels) const {
    __builtin_memset(data, 0, sizeof(float) * 3 * pixels * channels);
    int64_t* offset = offsets;
    for (int64_t top = 0; top < 3; ++top) {
      for (int64_t y = top; y < top + 3; ++y) {
        for (int64_t x = 0; x < 3; ++x) {
          for (int64_t c = 0; c < channels; ++c) {
            *offset++ = row(y, channels) - data + x * pixel_stride + c * channel_stride;
          }
        }
      }
    }
  }
  float* row(int64_t r, int64_t channels) const { return data + r % 3 * pixels * channels; }
  // For patches whose first row is `top`.
  const int64_t* offsets_at(int64_t top, int64_t channels) const {
    return offsets + top % 3 * stem_depth(channels);
  }
};

// Stages row r of padded image n.
inline void stage_stem_row(const MobileNetArgs& args, int64_t n, int64_t r, const StemRing& ring) {
  const ConvShape& s = args.stem.conv;
  const int64_t* strides = args.image_strides;
  const int64_t y = r - s.pad_top;
  float* to = ring.row(r, s.channels);
  if (y < 0 || y >= s.in_height) {
    __builtin_memset(to, 0, sizeof(float) * ring.pixels * s.channels);
    return;
  }
  const float* from = args.image + n * strides[0] + y * strides[2];
  const int64_t width = min_of(s.in_width, ring.pixels - s.pad_left);
  to += s.pad_left * ring.pixel_stride;
  if (strides[1] == 1 && strides[3] == s.channels) {
    __builtin_memcpy(to, from, sizeof(float) * width * s.channels);
    return;
  }
  for (int64_t c = 0; c < s.channels; ++c) {
    const float* plane = from + c * strides[1];
    float* const to_plane = to + c * ring.channel_stride;
    if (strides[3] == 1 && ring.pixel_stride == 1) {
      __builtin_memcpy(to_plane, plane, sizeof(float) * width);
      continue;
    }
    for (int64_t x = 0; x < width; ++x) to_plane[x * ring.pixel_stride] = plane[x * strides[3]];
  }
}

// kWidth: vectors of each panel that hold channels.
template <int kRows, int kPanels, int kWidth, Activation kActivation>
void stem_tile(const MobileNetLayer& stem, const StemRing& ring, const int64_t* offsets, int64_t x,
               int64_t panel, float* to) {
  const int64_t depth = stem_depth(stem.conv.channels), panel_stride = depth * kPanel;
  const int64_t step = stem.conv.stride * ring.pixel_stride;
  const float* weight = stem.weight + panel * panel_stride;
  const float* patch = ring.data + x * step;
  Tile<float, kRows, kPanels, kWidth> tile;
  tile.start(stem.weight + round_to_panels(stem.out_channels) * depth + panel * kPanel);
  if (step == 2) {  // every other pixel of planes: addresses need no registers
    tile.add_scattered(patch, 2, offsets, weight, panel_stride, depth);
  } else {
    tile.add_scattered(patch, step, offsets, weight, panel_stride, depth);
  }
  tile.template finish<kActivation>(to + panel * kPanel, row_pitch(stem.out_channels));
}

// Panels from `first` on of a row of outputs, kPanels at a time as long as there are so many.
// Narrow panels leave registers for more rows; channels beyond their vectors are left as they are:
// nobody uses them.
template <int kPanels, int kWidth, Activation kActivation>
void stem_row(const MobileNetLayer& stem, const StemRing& ring, const int64_t* offsets,
              int64_t first, float* to) {
  constexpr int kRows = most_tile_rows(kPanels * kWidth, 12);
  const int64_t panels = round_to_panels(stem.out_channels) / kPanel;
  const int64_t end = panels - (panels - first) % kPanels;
  const RowTiles tiles(stem.conv.out_width, kRows);
  for (int64_t t = 0; first < end && t < tiles.count; ++t) {
    const int64_t x = tiles.begin(t);
    dispatch_rows<kRows>(tiles.size(t), [&](auto rows) {
      for (int64_t panel = first; panel < end; panel += kPanels) {
        stem_tile<decltype(rows)::value, kPanels, kWidth, kActivation>(
            stem, ring, offsets, x, panel, to + x * row_pitch(stem.out_channels));
      }
    });
  }
  if constexpr (kPanels > 1) stem_row<1, kWidth, kActivation>(stem, ring, offsets, end, to);
}

// Output rows [rows.begin, rows.end) of an image; `output` begins with the first of them. `scratch`
// is that of a ring that was started once.
template <Activation kActivation>
void stem_rows(const MobileNetArgs& args, int64_t image, Range rows, float* output, void* scratch) {
  const MobileNetLayer& stem = args.stem;
  const ConvShape& s = stem.conv;
  const StemRing ring(args, scratch);
  const bool narrow = stem.out_channels <= kLanes<float>;
  int64_t staged = rows.begin * s.stride;
  for (int64_t r = rows.begin; r < rows.end; ++r, output += row_floats(stem)) {
    const int64_t top = r * s.stride;
    for (staged = max_of(staged, top); staged < top + 3; ++staged) {
      stage_stem_row(args, image, staged, ring);
    }
    const int64_t* offsets = ring.offsets_at(top, s.channels);
    if (narrow) {
      stem_row<1, 1, kActivation>(stem, ring, offsets, 0, output);
    } else {
      stem_row<kNarrowTilePanels<float>, kPanelVectors<float>, kActivation>(stem, ring, offsets, 0,
                                                                            output);
    }
  }
}

}  // namespace
}  // namespace mobilenet_ext::cpu
