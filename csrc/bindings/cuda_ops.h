// The ops that have CUDA kernels: the list for the dispatcher, for any Device that can run them,
// and the entry points of kernels/cuda/kernels.h by their arguments.
#pragma once

#include "bindings/depthwise_conv.h"
#include "kernels/cuda/kernels.h"

namespace mobilenet_ext {

template <typename Device, typename Library>
void implement_cuda_ops(Library& m) {
  m.impl("depthwise_conv", TORCH_BOX(&depthwise_conv<Device>));
  m.impl("depthwise_conv_backward", TORCH_BOX(&depthwise_conv_backward<Device>));
}

struct CudaKernels {
  static const char* name_of(const DepthwiseConvArgs&) { return "depthwise_conv"; }
  static int64_t workspace_bytes(const DepthwiseConvArgs& args) {
    return cuda::depthwise_conv_workspace_bytes(args);
  }
  static cudaError_t launch(const DepthwiseConvArgs& args, cudaStream_t stream) {
    return cuda::depthwise_conv(args, stream);
  }

  static const char* name_of(const DepthwiseConvBackwardArgs&) { return "depthwise_conv_backward"; }
  static int64_t workspace_bytes(const DepthwiseConvBackwardArgs& args) {
    return cuda::depthwise_conv_backward_workspace_bytes(args);
  }
  static cudaError_t launch(const DepthwiseConvBackwardArgs& args, cudaStream_t stream) {
    return cuda::depthwise_conv_backward(args, stream);
  }
};

}  // namespace mobilenet_ext
