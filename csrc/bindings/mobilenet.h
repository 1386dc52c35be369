// Front function of whole-network inference: check the table of layers, find each layer's weights
// in the packed array, run.
#pragma once

#include "bindings/checks.h"
#include "kernels/mobilenet.h"

namespace mobilenet_ext {

// A row of the table of layers: the stem, then one for each block. The four
// paddings are given, or all kSame: TensorFlow's SAME, by the size of the map.
struct LayerRow {
  int64_t in_channels, out_channels, stride, pad_left, pad_right, pad_top, pad_bottom;
};
constexpr int64_t kLayerColumns = sizeof(LayerRow) / sizeof(int64_t);
constexpr int64_t kSame = -1;

// TensorFlow's SAME along one axis: an output for every stride; the odd zero at the end.
inline void pad_same(int64_t size, int64_t stride, int64_t* before, int64_t* after) {
  const int64_t rest = size % stride, total = 3 - (rest ? rest : stride);
  *before = total / 2;
  *after = total - total / 2;
}

inline int64_t check_layer_table(const char* op, const Tensor& layers) {
  const bool fits = layers.dim() == 2 && layers.size(1) == kLayerColumns && layers.size(0) >= 1 &&
                    layers.size(0) <= kMaxMobileNetBlocks + 1;
  if (!fits) {
    fail(op, "layers must be [L, ", kLayerColumns, "] with L from 1 to ", kMaxMobileNetBlocks + 1,
         ", got ", shape_text(layers));
  }
  if (!layers.is_cpu() || layers.scalar_type() != ScalarType::Long || !layers.is_contiguous()) {
    fail(op, "layers must be a contiguous int64 tensor on cpu, got ",
         dtype_text(layers.scalar_type()), " on ", device_text(layers));
  }
  return layers.size(0);
}

// The geometry of one layer; `before` has the size of its input.
inline ConvShape check_layer(const char* op, int64_t index, const LayerRow& row,
                             const MapSize& before) {
  const auto must = [&](bool holds, const char* what, int64_t got) {
    if (!holds) fail(op, "layers[", index, "] must have ", what, ", got ", got);
  };
  must(row.in_channels == before.c, "the channels of its input", row.in_channels);
  must(row.out_channels >= 1 && row.out_channels < 1 << 20, "1 or more channels", row.out_channels);
  must(row.stride == 1 || row.stride == 2, "stride 1 or 2", row.stride);
  ConvShape s = {before.n,     before.c,      before.h,    before.w,      0, 0, 3, row.stride, 1,
                 row.pad_left, row.pad_right, row.pad_top, row.pad_bottom};
  const bool same = row.pad_left == kSame;
  for (const int64_t pad : {row.pad_left, row.pad_right, row.pad_top, row.pad_bottom}) {
    must(same ? pad == kSame : pad >= 0 && pad <= 2, "paddings from 0 to 2, or four times -1", pad);
  }
  if (same) {
    pad_same(s.in_width, s.stride, &s.pad_left, &s.pad_right);
    pad_same(s.in_height, s.stride, &s.pad_top, &s.pad_bottom);
  }
  s.out_height = conv_output_size(s.in_height + s.pad_top + s.pad_bottom, 3, s.stride);
  s.out_width = conv_output_size(s.in_width + s.pad_left + s.pad_right, 3, s.stride);
  must(s.out_height >= 1 && s.out_width >= 1, "an input as large as its kernel",
       s.in_height < s.in_width ? s.in_height : s.in_width);
  return s;
}

template <typename Device>
Tensor mobilenet(const Tensor& input, const Tensor& weight, const Tensor& layers, int64_t outputs,
                 bool has_classifier, int64_t activation) {
  const char* op = "mobilenet";
  check_map(op, "input", input);
  if (input.scalar_type() != ScalarType::Float) {
    fail(op, "input must be float32, got ", dtype_text(input.scalar_type()));
  }
  check_same_kind(op, "weight", weight, input);
  const int64_t count = check_layer_table(op, layers);
  check_activation(op, "activation", activation);
  if (outputs < 1) fail(op, "outputs must be at least 1, got ", outputs);

  MobileNetArgs args;  // large: only what is used is written
  args.batch = input.size(0);
  args.image = static_cast<const float*>(input.const_data_ptr());
  for (int64_t d = 0; d < 4; ++d) args.image_strides[d] = input.stride(d);
  args.block_count = count - 1;
  args.activation = static_cast<Activation>(activation);

  const auto* rows = static_cast<const LayerRow*>(layers.const_data_ptr());
  const float* base = static_cast<const float*>(weight.const_data_ptr());
  const float* next = base;
  const auto take = [&](int64_t floats) {
    const float* taken = next;
    next += floats;
    return taken;
  };
  MapSize size = size_of(input);
  for (int64_t i = 0; i < count; ++i) {
    MobileNetLayer& layer = i ? args.blocks[i - 1] : args.stem;
    layer.conv = check_layer(op, i, rows[i], size);
    layer.out_channels = rows[i].out_channels;
    if (i == 0) {
      layer.weight = take(packed_matrix_size(layer.out_channels, stem_depth(size.c)));
    } else {
      layer.weight = take(packed_depthwise_size(size.c));
      layer.point_weight = take(packed_matrix_size(layer.out_channels, size.c));
    }
    size = {size.n, layer.out_channels, layer.conv.out_height, layer.conv.out_width};
  }
  args.classifier = nullptr;
  if (has_classifier) {
    args.classifier = take(packed_matrix_size(outputs, size.c));
  } else if (outputs != size.c) {
    fail(op, "outputs must be the last layer's ", size.c, " without a classifier, got ", outputs);
  }
  args.outputs = outputs;
  if (weight.dim() != 1 || weight.size(0) != next - base || !weight.is_contiguous()) {
    fail(op, "weight must be contiguous [", next - base, "], got ", shape_text(weight));
  }
  const int64_t sizes[] = {args.batch, args.outputs}, strides[] = {args.outputs, 1};
  const Tensor output = empty_strided(input, ScalarType::Float, 2, sizes, strides);
  args.output = static_cast<float*>(output.mutable_data_ptr());
  if (args.batch > 0) Device::run(args, input);
  return output;
}

}  // namespace mobilenet_ext
