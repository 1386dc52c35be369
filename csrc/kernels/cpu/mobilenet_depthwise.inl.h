// The depthwise layers of whole-network inference: act(conv(x) + bias), 3 x 3, stride 1 or 2,
// float32. Pixels are whole panels of channels, the last of them zeros.
#pragma once

#include "kernels/cpu/depthwise_rows.inl.h"
#include "kernels/mobilenet.h"

namespace mobilenet_ext::cpu {
namespace {

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

// act(conv(x) + bias)
template <Activation kActivation>
struct AddBias {
  const float* bias;

  struct Vector {
    Vec<float> bias;
    Vec<float> start() const { return bias; }
    Vec<float> operator()(Vec<float> sum, int64_t) const { return activate<kActivation>(sum); }
    void end() const {}
  };
  Vector at(int64_t channel) const { return {load(bias + channel, AllLanes{})}; }
  void count(int64_t) const {}
};

// Output rows [rows.begin, rows.end), counted through all images of the input; `output` begins with
// the first of them.
template <int kStride, Activation kActivation>
void depthwise_rows(const MobileNetLayer& layer, const MapRows& input, Range rows, float* output) {
  const ConvShape& s = layer.conv;
  const int64_t tap_stride = round_to_panels(s.channels);
  ConvRow<float> row = {};
  row.tap_stride = tap_stride;
  row.channels = round_up(s.channels, kLanes<float>);
  row.pitch = row_pitch(s.channels);
  const AddBias<kActivation> epilogue{layer.weight + 9 * tap_stride};
  const Range inner = inner_outputs(s);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const int64_t image = divide(r, s.out_height);
    const int64_t top = (r - image * s.out_height) * kStride - s.pad_top;
    const int64_t first = max_of(0, -top), end = min_of(3, s.in_height - top);
    row.tap_rows = 0;
    for (int64_t y = first; y < end; ++y) {
      row.add(input.at(image * s.in_height + top + y), layer.weight + y * 3 * tap_stride);
    }
    row.output = {output + (r - rows.begin) * s.out_width * row.pitch, s.out_width, row.pitch};
    convolve_map_row<kStride>(s, row, inner, epilogue);
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
