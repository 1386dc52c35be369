// The depthwise convolution of whole-network inference: act(conv(x) + bias), 3 x 3, stride 1 or 2,
// float32. Pixels are whole panels of channels, the last of them zeros. For each vector of channels
// the weights stay in registers along a row, or as far along it as its pixels stay in the L1 cache
// for the next vector; four neighbouring outputs share what they load. Taps outside the map are
// left out, so that maps of a few pixels, which are all border, do less work and not more.
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

// A row of outputs, and the rows of its taps that lie inside the map.
struct DepthwiseRow {
  const float* input[3];   // the first pixel of each input row
  const float* weight[3];  // the first tap of the same rows, [3, tap_stride]
  const float* bias;
  int64_t channels, tap_stride;
  int64_t pitch;  // floats from a pixel to the next, of both maps
  float* output;
};

// Which outputs of a row have all their columns inside the map.
inline Range inner_outputs(const ConvShape& s) {
  const int64_t begin = min_of(ceil_div(s.pad_left, s.stride), s.out_width);
  const int64_t room = s.in_width + s.pad_left - 3;  // for the first column of an output
  const int64_t end = room < 0 ? 0 : min_of(divide(room, s.stride) + 1, s.out_width);
  return {begin, max_of(begin, end)};
}

// The same address, of whose origin the compiler then knows nothing. Otherwise it keeps one for
// each of the loads from it, and has no registers for so many.
inline const float* opaque(const float* address) {
  asm("" : "+r"(address));
  return address;
}

// A vector of channels along a row: the outputs one after the other. kHeld: the weights stay in
// registers for all of them; otherwise each loads what it needs.
template <int kTapRows, int kStride, bool kHeld, Activation kActivation>
struct DepthwiseVector {
  const float* input[kTapRows];  // the first column of the next output
  const float* taps[kTapRows];
  float* output;
  int64_t pitch, tap_stride;
  Vec<float> bias, held[kTapRows][3];

  // From output x on.
  DepthwiseVector(const ConvShape& s, const DepthwiseRow& row, int64_t x, int64_t channel)
      : output(row.output + x * row.pitch + channel),
        pitch(row.pitch),
        tap_stride(row.tap_stride),
        bias(load(row.bias + channel, AllLanes{})) {
#pragma GCC unroll 3
    for (int y = 0; y < kTapRows; ++y) {
      input[y] = row.input[y] + (x * kStride - s.pad_left) * pitch + channel;
      taps[y] = row.weight[y] + channel;
#pragma GCC unroll 3
      for (int i = 0; kHeld && i < 3; ++i) held[y][i] = load_weight(y, i);
    }
  }

  __attribute__((always_inline)) inline Vec<float> load_weight(int y, int x) const {
    return load(taps[y] + x * tap_stride, AllLanes{});
  }

  // kOutputs outputs from their taps [kFirst, kEnd) of each row.
  template <int kOutputs, int kFirst, int kEnd>
  __attribute__((always_inline)) inline void compute() {
    Vec<float> sum[kOutputs];
#pragma GCC unroll 4
    for (int i = 0; i < kOutputs; ++i) sum[i] = bias;
#pragma GCC unroll 3
    for (int y = 0; y < kTapRows; ++y) {
      const float* from = opaque(input[y]);
#pragma GCC unroll 16
      for (int column = kFirst; column < (kOutputs - 1) * kStride + kEnd; ++column) {
        const Vec<float> value = load(from + column * pitch, AllLanes{});
#pragma GCC unroll 4
        for (int i = 0; i < kOutputs; ++i) {
          const int x = column - i * kStride;
          if (x >= kFirst && x < kEnd) sum[i] += value * (kHeld ? held[y][x] : load_weight(y, x));
        }
      }
      input[y] += kOutputs * kStride * pitch;
    }
#pragma GCC unroll 4
    for (int i = 0; i < kOutputs; ++i) {
      store(output + i * pitch, activate<kActivation>(sum[i]), AllLanes{});
    }
    output += kOutputs * pitch;
  }
};

// The columns of an output's taps that lie inside the map, as constants.
template <int kFirst, int kEnd>
struct Columns {
  static constexpr int first = kFirst, end = kEnd;
};

// Calls f(constants) for output x of a row, which reaches over an edge of the map.
template <typename F>
inline void dispatch_columns(const ConvShape& s, int64_t x, F f) {
  const int64_t from = x * s.stride - s.pad_left;
  const int64_t first = max_of(0, -from), end = min_of(3, s.in_width - from);
  if (first == 0) return end == 2 ? f(Columns<0, 2>{}) : f(Columns<0, 1>{});
  if (first == 2) return f(Columns<2, 3>{});
  return end == 3 ? f(Columns<1, 3>{}) : f(Columns<1, 2>{});
}

// Outputs `at` of a row, of which those in `inner` have all their columns inside.
template <int kTapRows, int kStride, Activation kActivation>
void depthwise_part(const ConvShape& s, const DepthwiseRow& row, Range at, Range inner) {
  for (int64_t channel = 0; channel < row.channels; channel += kLanes<float>) {
    DepthwiseVector<kTapRows, kStride, true, kActivation> vector(s, row, at.begin, channel);
    for (int64_t x = at.begin; x < at.end;) {
      const int64_t inside = x < inner.begin ? 0 : min_of(inner.end, at.end) - x;
      if (inside >= 4) {
        vector.template compute<4, 0, 3>();
        x += 4;
      } else if (inside >= 2) {
        vector.template compute<2, 0, 3>();
        x += 2;
      } else if (inside == 1) {
        vector.template compute<1, 0, 3>();
        x += 1;
      } else {
        dispatch_columns(s, x, [&](auto columns) {
          vector.template compute<1, decltype(columns)::first, decltype(columns)::end>();
        });
        x += 1;
      }
    }
  }
}

// An output that is all border: no weights to hold for others.
template <int kTapRows, int kStride, Activation kActivation>
void depthwise_border(const ConvShape& s, const DepthwiseRow& row, int64_t x) {
  dispatch_columns(s, x, [&](auto columns) {
    for (int64_t channel = 0; channel < row.channels; channel += kLanes<float>) {
      DepthwiseVector<kTapRows, kStride, false, kActivation> vector(s, row, x, channel);
      vector.template compute<1, decltype(columns)::first, decltype(columns)::end>();
    }
  });
}

// In parts of `part` outputs, whose pixels stay in the L1 cache; the last one may be longer.
template <int kTapRows, int kStride, Activation kActivation>
void depthwise_row(const ConvShape& s, const DepthwiseRow& row, Range inner, int64_t part) {
  if (inner.size() == 0) {
    for (int64_t x = 0; x < s.out_width; ++x)
      depthwise_border<kTapRows, kStride, kActivation>(s, row, x);
    return;
  }
  for (int64_t x = 0; x < s.out_width;) {
    int64_t end = max_of(x, inner.begin) + part;
    if (end + part > s.out_width) end = s.out_width;
    depthwise_part<kTapRows, kStride, kActivation>(s, row, {x, end}, inner);
    x = end;
  }
}

// How many outputs of a row to compute before the next vector of channels. Of a vector's lines, a
// pitch apart, as many share a set of the cache as if it were the power of two that divides it. At
// stride 2 other vectors' lines count as well: memory is read in order, which is faster there.
inline int64_t outputs_in_l1(int64_t pitch, int64_t stride) {
  const int64_t floats = stride == 1 ? (pitch & -pitch) : pitch;
  const int64_t group_bytes = 3 * 4 * stride * floats * static_cast<int64_t>(sizeof(float));
  return 4 * max_of(1, divide(kRunBytes, group_bytes));
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
  const Range inner = inner_outputs(s);
  const int64_t part = outputs_in_l1(row.pitch, kStride);
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
      depthwise_row<3, kStride, kActivation>(s, row, inner, part);
    } else if (end - first == 2) {
      depthwise_row<2, kStride, kActivation>(s, row, inner, part);
    } else {
      depthwise_row<1, kStride, kActivation>(s, row, inner, part);
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
