// Arguments of the depthwise convolution with its normalising prologue and its epilogue.
// Maps are dense, of `dtype`, in the shape below with kNhwc, which is all that CPU kernels take,
// and [N, C, ...] with kNchw; per-channel vectors are float (double for kFloat64). The caller owns
// all memory; `workspace` holds what the device's workspace function asks for.
#pragma once

#include "kernels/activation.h"
#include "kernels/conv_shape.h"

namespace mobilenet_ext {

// act(x * scale + shift), or nothing at all when `scale` is null.
struct ScaleShiftAct {
  const void* scale;  // [C]
  const void* shift;  // [C]
  Activation activation;
};

// BatchNorm's backward, an affine map per channel: grad_scale * dy + raw_scale * raw + raw_shift.
struct GradientMap {
  const void* grad_scale;  // [C]; null: the gradient is taken as it is
  const void* raw_scale;   // [C] or null: 0
  const void* raw_shift;   // [C] or null: 0
};

struct DepthwiseConvArgs {
  ConvShape shape;
  DType dtype;
  Layout layout;       // of input and output
  const void* input;   // [N, H, W, C]
  const void* weight;  // [C, K * K], by the two strides below (in elements)
  int64_t weight_channel_stride, weight_tap_stride;
  ScaleShiftAct prologue;  // on the input; zero padding comes after it
  ScaleShiftAct epilogue;  // on the raw output
  void* output;            // [N, OH, OW, C]
  void* mean;              // [C] of the raw output as stored, or null: no statistics
  void* var;               // [C] biased
  void* workspace;
};

struct DepthwiseConvBackwardArgs {
  ConvShape shape;
  DType dtype;
  Layout layout;            // of grad_output, output, input and grad_input
  const void* grad_output;  // [N, OH, OW, C]
  const void* output;       // [N, OH, OW, C] raw, or null when nothing followed the convolution
  ScaleShiftAct epilogue;   // what was applied to `output`; its gradient is taken on load
  GradientMap gradient_map;
  const void* input;   // [N, H, W, C]
  const void* weight;  // [C, K * K]
  int64_t weight_channel_stride, weight_tap_stride;
  ScaleShiftAct prologue;
  const void* input_mean;  // [C], or null: no sums
  void* grad_input;        // [N, H, W, C] after the prologue's mask, or null: not needed
  void* grad_weight;       // [C, K * K] dense, or null: not needed
  void* grad_sum;          // [C] sum of grad_input
  void* grad_dot;          // [C] sum of grad_input * (input - input_mean)
  void* workspace;
};

}  // namespace mobilenet_ext
