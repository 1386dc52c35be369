// Arguments of the pointwise (1 x 1) convolution with its normalising prologue and its epilogue: a
// matrix product over the pixels of an NHWC tensor. Any other dense convolution is one of patches:
// its pixels are all values that an output reads. Maps are dense and of `dtype`, per-channel
// vectors float (double for kFloat64); the caller owns all memory.
#pragma once

#include "kernels/depthwise_conv.h"

namespace mobilenet_ext {

struct PointwiseShape {
  int64_t pixels, in_channels, out_channels;
};

// A matrix [C', C] by strides, in elements.
struct PointwiseWeight {
  const void* data;
  int64_t out_stride, in_stride;
};

struct PointwiseConvArgs {
  PointwiseShape shape;
  DType dtype;
  const void* input;  // [pixels, C], or the image [N, H, W, c] of `patches`
  ConvShape patches;  // what reads them, C = K * K * c values each; no kernel: there are none
  PointwiseWeight weight;
  ScaleShiftAct prologue;  // on the input, if it is no image
  ScaleShiftAct epilogue;  // on the raw output
  void* output;            // [pixels, C']
  void* mean;              // [C'] of the raw output as stored, or null: no statistics
  void* var;               // [C'] biased
  void* workspace;
};

struct PointwiseConvBackwardArgs {
  PointwiseShape shape;
  DType dtype;
  const void* grad_output;  // [pixels, C']
  const void* output;       // [pixels, C'] raw, or null when nothing followed the convolution
  ScaleShiftAct epilogue;   // what was applied to `output`; its gradient is taken on load
  GradientMap gradient_map;
  const void* input;  // [pixels, C], or the image of `patches`
  ConvShape patches;  // as in the forward; the image gets no gradient
  PointwiseWeight weight;
  ScaleShiftAct prologue;
  const void* input_mean;  // [C], or null: no sums
  void* grad_input;        // [pixels, C] after the prologue's mask, or null: not needed
  void* grad_weight;       // [C', C] dense, or null: not needed
  void* grad_sum;          // [C] sum of grad_input
  void* grad_dot;          // [C] sum of grad_input * (input - input_mean)
  void* workspace;
};

}  // namespace mobilenet_ext
