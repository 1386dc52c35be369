// Arguments of the batch-norm ops on dense maps, and of those on vectors alone. Maps have `pixels`
// values of each channel, `plane` of which lie side by side: [pixels / plane, C, plane]. A plane of
// 1 is a [pixels, C] matrix, i.e. NHWC, which is all that CPU kernels take; one of H * W is NCHW.
// Per-channel vectors are float (double for kFloat64); the caller owns all memory.
#pragma once

#include "kernels/depthwise_conv.h"

namespace mobilenet_ext {

struct BatchNormStatisticsArgs {
  int64_t pixels, channels, plane;
  DType dtype;
  const void* input;  // [pixels / plane, C, plane]
  void* mean;         // [C]
  void* var;          // [C] biased
  void* workspace;
};

struct ScaleShiftActArgs {
  int64_t pixels, channels, plane;
  DType dtype;
  const void* input;  // [pixels / plane, C, plane]
  ScaleShiftAct map;
  void* output;  // [pixels / plane, C, plane]
  void* workspace;
};

// grad_sum and grad_dot: what BatchNorm's backward needs to know of the whole batch.
struct ScaleShiftActBackwardReduceArgs {
  int64_t pixels, channels, plane;
  DType dtype;
  const void* grad_output;  // [pixels / plane, C, plane]
  const void* input;        // [pixels / plane, C, plane]
  ScaleShiftAct map;
  const void* mean;  // [C]
  void* grad_sum;    // [C] sum of dy
  void* grad_dot;    // [C] sum of dy * (input - mean)
  void* workspace;
};

struct ScaleShiftActBackwardArgs {
  int64_t pixels, channels, plane;
  DType dtype;
  const void* grad_output;  // [pixels / plane, C, plane]
  const void* input;        // [pixels / plane, C, plane]
  ScaleShiftAct map;
  GradientMap gradient_map;
  void* grad_input;  // [pixels / plane, C, plane]
  void* workspace;
};

// scale = weight * invstd, shift = bias - mean * scale.
struct BatchNormAffineArgs {
  int64_t channels;
  DType dtype;         // of all vectors: kFloat32 or kFloat64
  const void* mean;    // [C]
  const void* var;     // [C] biased
  const void* weight;  // [C] or null: 1
  const void* bias;    // [C] or null: 0
  double eps;
  double unbias;       // unbiased_var over var
  void* scale;         // [C]
  void* shift;         // [C]
  void* invstd;        // [C]
  void* unbiased_var;  // [C] or null: not needed
  void* workspace;
};

// The parameters' gradients, and what the statistics send to the raw input: a GradientMap's terms.
struct BatchNormGradientMapArgs {
  int64_t channels;
  DType dtype;           // of all vectors: kFloat32 or kFloat64
  const void* grad_sum;  // [C] sum of dy
  const void* grad_dot;  // [C] sum of dy * (raw - mean)
  const void* scale;     // [C]
  const void* mean;      // [C]
  const void* invstd;    // [C]
  double count;          // values of each channel
  void* grad_weight;     // [C]
  void* raw_scale;       // [C]
  void* raw_shift;       // [C]
  void* workspace;
};

}  // namespace mobilenet_ext
