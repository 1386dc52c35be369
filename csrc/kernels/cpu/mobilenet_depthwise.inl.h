// The depthwise convolution of whole-network inference: act(conv(x) + bias), 3 x 3, stride 1 or 2,
// float32. Pixels are whole panels of channels, the last of them zeros. Four neighbouring outputs
// share what they load, and a run of such groups shares the weights; a run ends where its pixels
// would not stay in the L1 cache for the next vector of channels. So rows of few channels are gone
// through pixel by pixel, wide ones channel by channel over contiguous memory. Taps outside the map
// are left out, so that maps of a few pixels, which are all border, do less work and not more.
#pragma once

#include "kernels/cpu/partition.h"
#include "kernels/cpu/vec.h"
#include "kernels/mobilenet.h"

namespace mobilenet_ext::cpu {
namespace {

constexpr int64_t kRunBytes = 16 * 1024;  // of the L1 cache

// Rows of a map: all, or the latest of them in a ring, where row `begin` lay first.
struct MapRows {
  float* data;
  int64_t row_floats;
  int64_t begin, count;

  float* at(int64_t row) const {
    int64_t slot = row - begin;
    if (slot >= count) slot -= divide(slot, count) * count;
    return data + slot * row_floats;
  }
};

// A row of outputs of some channels, and the rows of its taps that lie inside the map.
struct DepthwiseRow {
  const float* input[3];   // the first pixel of each input row
  const float* weight[3];  // the first tap of the same rows, [3, tap_stride]
  const float* bias;
  int64_t channels, tap_stride;
  int64_t pitch;  // floats from a pixel to the next, of both maps
  float* output;
};

// `groups` times kOutputs outputs from x on, from the taps [kFirstColumn, kEndColumn) of kTapRows
// rows; `from`: input pixel of the first output's first tap, which may lie outside. The weights of
// a vector of channels stay in registers for all groups.
template <int kTapRows, int kStride, int kOutputs, int kFirstColumn, int kEndColumn,
          Activation kActivation>
void depthwise_pixels(const DepthwiseRow& row, int64_t x, int64_t from, int64_t groups) {
  for (int64_t c = 0; c < row.channels; c += kLanes<float>) {
    const Vec<float> bias = load(row.bias + c, AllLanes{});
    Vec<float> weight[kTapRows][3] = {};
    for (int tap_y = 0; tap_y < kTapRows; ++tap_y) {
      for (int tap_x = kFirstColumn; tap_x < kEndColumn; ++tap_x) {
        weight[tap_y][tap_x] = load(row.weight[tap_y] + tap_x * row.tap_stride + c, AllLanes{});
      }
    }
    for (int64_t g = 0; g < groups; ++g) {
      Vec<float> sum[kOutputs];
      for (int i = 0; i < kOutputs; ++i) sum[i] = bias;
#pragma GCC unroll 3
      for (int tap_y = 0; tap_y < kTapRows; ++tap_y) {
        const float* input = row.input[tap_y] + (from + g * kOutputs * kStride) * row.pitch + c;
#pragma GCC unroll 16
        for (int column = kFirstColumn; column < (kOutputs - 1) * kStride + kEndColumn; ++column) {
          const Vec<float> value = load(input + column * row.pitch, AllLanes{});
#pragma GCC unroll 4
          for (int i = 0; i < kOutputs; ++i) {
            const int tap_x = column - i * kStride;
            if (tap_x >= kFirstColumn && tap_x < kEndColumn) sum[i] += value * weight[tap_y][tap_x];
          }
        }
      }
      float* output = row.output + (x + g * kOutputs) * row.pitch + c;
      for (int i = 0; i < kOutputs; ++i) {
        store(output + i * row.pitch, activate<kActivation>(sum[i]), AllLanes{});
      }
    }
  }
}

// One output whose columns are clipped to [first, end).
template <int kTapRows, Activation kActivation>
void depthwise_border(const DepthwiseRow& row, int64_t x, int64_t from, int64_t first,
                      int64_t end) {
  if (first == 0 && end == 2)
    return depthwise_pixels<kTapRows, 1, 1, 0, 2, kActivation>(row, x, from, 1);
  if (first == 1 && end == 3)
    return depthwise_pixels<kTapRows, 1, 1, 1, 3, kActivation>(row, x, from, 1);
  if (first == 0 && end == 1)
    return depthwise_pixels<kTapRows, 1, 1, 0, 1, kActivation>(row, x, from, 1);
  if (first == 1 && end == 2)
    return depthwise_pixels<kTapRows, 1, 1, 1, 2, kActivation>(row, x, from, 1);
  if (first == 2 && end == 3)
    return depthwise_pixels<kTapRows, 1, 1, 2, 3, kActivation>(row, x, from, 1);
  depthwise_pixels<kTapRows, 1, 1, 0, 3, kActivation>(row, x, from, 1);
}

template <int kTapRows, int kStride, Activation kActivation>
void depthwise_row(const ConvShape& s, const DepthwiseRow& row) {
  const int64_t group_floats = kTapRows * 4 * kStride * row.pitch;
  const int64_t fitting = divide(kRunBytes, group_floats * static_cast<int64_t>(sizeof(float)));
  int64_t x = 0;
  while (x < s.out_width) {
    const int64_t from = x * kStride - s.pad_left;
    const auto inside = [&](int64_t outputs) {
      return from >= 0 && x + outputs <= s.out_width &&
             from + (outputs - 1) * kStride + 3 <= s.in_width;
    };
    if (inside(4)) {
      int64_t groups = 1;
      while (groups < fitting && inside(4 * (groups + 1))) ++groups;
      depthwise_pixels<kTapRows, kStride, 4, 0, 3, kActivation>(row, x, from, groups);
      x += 4 * groups;
    } else if (inside(2)) {
      depthwise_pixels<kTapRows, kStride, 2, 0, 3, kActivation>(row, x, from, 1);
      x += 2;
    } else {
      const int64_t first = max_of(0, -from), end = min_of(3, s.in_width - from);
      depthwise_border<kTapRows, kActivation>(row, x, from, first, end);
      x += 1;
    }
  }
}

// Output rows [rows.begin, rows.end), counted through all images of the input; `output` begins with
// the first of them.
template <int kStride, Activation kActivation>
void depthwise_rows(const MobileNetLayer& layer, const MapRows& input, Range rows, float* output) {
  const ConvShape& s = layer.conv;
  DepthwiseRow row = {};
  row.channels = round_up(s.channels, kLanes<float>);
  row.tap_stride = round_to_panels(s.channels);
  row.pitch = row_pitch(s.channels);
  row.bias = layer.weight + 9 * row.tap_stride;
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const int64_t image = divide(r, s.out_height);
    const int64_t top = (r - image * s.out_height) * kStride - s.pad_top;
    const int64_t first = max_of(0, -top), end = min_of(3, s.in_height - top);
    row.output = output + (r - rows.begin) * s.out_width * row.pitch;
    for (int64_t y = first; y < end; ++y) {
      row.input[y - first] = input.at(image * s.in_height + top + y);
      row.weight[y - first] = layer.weight + y * 3 * row.tap_stride;
    }
    if (end - first == 3) {
      depthwise_row<3, kStride, kActivation>(s, row);
    } else if (end - first == 2) {
      depthwise_row<2, kStride, kActivation>(s, row);
    } else {
      depthwise_row<1, kStride, kActivation>(s, row);
    }
  }
}

template <Activation kActivation>
void depthwise(const MobileNetLayer& block, const MapRows& input, Range rows, float* output) {
  if (block.conv.stride == 1) {
    depthwise_rows<1, kActivation>(block, input, rows, output);
  } else {
    depthwise_rows<2, kActivation>(block, input, rows, output);
  }
}

}  // namespace
}  // namespace mobilenet_ext::cpu
