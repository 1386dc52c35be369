// The geometry of a depthwise convolution, shared by forward and backward, CPU and CUDA.
#pragma once

#include "kernels/types.h"

namespace mobilenet_ext {

struct ConvShape {
  int64_t batch, channels;
  int64_t in_height, in_width;
  int64_t out_height, out_width;
  int64_t kernel, stride, dilation;
  int64_t pad_left, pad_right, pad_top, pad_bottom;
};

// Pixels from the first to the last tap of a kernel, both included.
static MOBILENET_EXT_HOST_DEVICE inline int64_t kernel_extent(const ConvShape& s) {
  return (s.kernel - 1) * s.dilation + 1;
}

// Output pixels along one axis; `size` counts the padding, `extent` is the kernel's.
static MOBILENET_EXT_HOST_DEVICE inline int64_t conv_output_size(int64_t size, int64_t extent,
                                                                 int64_t stride) {
  return size < extent ? 0 : (size - extent) / stride + 1;
}

}  // namespace mobilenet_ext
