// A block of whole-network inference on some rows: the depthwise output goes into a tile in the L2
// cache, and the pointwise product reads it there.
#pragma once

#include "kernels/cpu/gemm.inl.h"
#include "kernels/cpu/mobilenet_depthwise.inl.h"
#include "kernels/cpu/mobilenet_schedule.h"

namespace mobilenet_ext::cpu {
namespace {

inline Range all_panels(const MobileNetLayer& layer) {
  return {0, round_to_panels(layer.out_channels) / kPanel};
}

// Where the next layer's weights lie.
inline const float* weight_after(const MobileNetLayer& block) {
  return block.point_weight + packed_matrix_size(block.out_channels, block.conv.channels);
}

// Panels of output rows [rows.begin, rows.end), counted through all images of the input; `output`
// begins with the first of them. `following`: the weights that will be needed next.
template <Activation kActivation>
void block_rows(const MobileNetLayer& block, const MapRows& input, Range rows, Range panels,
                const float* following, float* tile, float* output) {
  const int64_t depth = block.conv.channels;
  depthwise<kActivation>(block, input, rows, tile);
  Product<float> p;
  p.a = tile;
  p.a_stride = row_pitch(depth);
  p.rows = rows.size() * block.conv.out_width;
  p.depth = depth;
  p.b = block.point_weight + panels.begin * kPanel * depth;
  p.bias = block.point_weight + round_to_panels(block.out_channels) * depth + panels.begin * kPanel;
  p.panels = panels.size();
  p.c = output + panels.begin * kPanel;
  p.c_stride = row_pitch(block.out_channels);
  p.following = following;
  product<kActivation>(p);
}

}  // namespace
}  // namespace mobilenet_ext::cpu
