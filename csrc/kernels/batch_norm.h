// Arguments of the batch-norm ops on a dense [pixels, C] matrix, i.e. an NHWC tensor.
// Per-channel vectors are float (double for kFloat64); the caller owns all memory.
#pragma once

#include "kernels/depthwise_conv.h"

namespace mobilenet_ext {

struct BatchNormStatisticsArgs {
  int64_t pixels, channels;
  DType dtype;
  const void* input;  // [pixels, C]
  void* mean;         // [C]
  void* var;          // [C] biased
  void* workspace;
};

struct ScaleShiftActArgs {
  int64_t pixels, channels;
  DType dtype;
  const void* input;  // [pixels, C]
  ScaleShiftAct map;
  void* output;  // [pixels, C]
  void* workspace;
};

// grad_sum and grad_dot: what BatchNorm's backward needs to know of the whole batch.
struct ScaleShiftActBackwardReduceArgs {
  int64_t pixels, channels;
  DType dtype;
  const void* grad_output;  // [pixels, C]
  const void* input;        // [pixels, C]
  ScaleShiftAct map;
  const void* mean;  // [C]
  void* grad_sum;    // [C] sum of dy
  void* grad_dot;    // [C] sum of dy * (input - mean)
  void* workspace;
};

struct ScaleShiftActBackwardArgs {
  int64_t pixels, channels;
  DType dtype;
  const void* grad_output;  // [pixels, C]
  const void* input;        // [pixels, C]
  ScaleShiftAct map;
  GradientMap gradient_map;
  void* grad_input;  // [pixels, C]
  void* workspace;
};

}  // namespace mobilenet_ext
