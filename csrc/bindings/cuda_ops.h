// The ops that have CUDA kernels: the list for the dispatcher, for any Device that can run them,
// and the entry points of kernels/cuda/kernels.h by their arguments.
#pragma once

#include "bindings/batch_norm.h"
#include "bindings/batch_norm_vectors.h"
#include "bindings/depthwise_conv.h"
#include "kernels/cuda/kernels.h"

namespace mobilenet_ext {

template <typename Device, typename Library>
void implement_cuda_ops(Library& m) {
  m.impl("depthwise_conv", TORCH_BOX(&depthwise_conv<Device>));
  m.impl("depthwise_conv_backward", TORCH_BOX(&depthwise_conv_backward<Device>));
  m.impl("batch_norm_statistics", TORCH_BOX(&batch_norm_statistics<Device>));
  m.impl("scale_shift_act", TORCH_BOX(&scale_shift_act<Device>));
  m.impl("scale_shift_act_backward_reduce", TORCH_BOX(&scale_shift_act_backward_reduce<Device>));
  m.impl("scale_shift_act_backward", TORCH_BOX(&scale_shift_act_backward<Device>));
  m.impl("batch_norm_affine", TORCH_BOX(&batch_norm_affine<Device>));
  m.impl("batch_norm_gradient_map", TORCH_BOX(&batch_norm_gradient_map<Device>));
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

  static const char* name_of(const BatchNormStatisticsArgs&) { return "batch_norm_statistics"; }
  static int64_t workspace_bytes(const BatchNormStatisticsArgs& args) {
    return cuda::batch_norm_statistics_workspace_bytes(args);
  }
  static cudaError_t launch(const BatchNormStatisticsArgs& args, cudaStream_t stream) {
    return cuda::batch_norm_statistics(args, stream);
  }

  static const char* name_of(const ScaleShiftActArgs&) { return "scale_shift_act"; }
  static int64_t workspace_bytes(const ScaleShiftActArgs& args) {
    return cuda::scale_shift_act_workspace_bytes(args);
  }
  static cudaError_t launch(const ScaleShiftActArgs& args, cudaStream_t stream) {
    return cuda::scale_shift_act(args, stream);
  }

  static const char* name_of(const ScaleShiftActBackwardReduceArgs&) {
    return "scale_shift_act_backward_reduce";
  }
  static int64_t workspace_bytes(const ScaleShiftActBackwardReduceArgs& args) {
    return cuda::scale_shift_act_backward_reduce_workspace_bytes(args);
  }
  static cudaError_t launch(const ScaleShiftActBackwardReduceArgs& args, cudaStream_t stream) {
    return cuda::scale_shift_act_backward_reduce(args, stream);
  }

  static const char* name_of(const ScaleShiftActBackwardArgs&) {
    return "scale_shift_act_backward";
  }
  static int64_t workspace_bytes(const ScaleShiftActBackwardArgs& args) {
    return cuda::scale_shift_act_backward_workspace_bytes(args);
  }
  static cudaError_t launch(const ScaleShiftActBackwardArgs& args, cudaStream_t stream) {
    return cuda::scale_shift_act_backward(args, stream);
  }

  static const char* name_of(const BatchNormAffineArgs&) { return "batch_norm_affine"; }
  static int64_t workspace_bytes(const BatchNormAffineArgs& args) {
    return cuda::batch_norm_affine_workspace_bytes(args);
  }
  static cudaError_t launch(const BatchNormAffineArgs& args, cudaStream_t stream) {
    return cuda::batch_norm_affine(args, stream);
  }

  static const char* name_of(const BatchNormGradientMapArgs&) { return "batch_norm_gradient_map"; }
  static int64_t workspace_bytes(const BatchNormGradientMapArgs& args) {
    return cuda::batch_norm_gradient_map_workspace_bytes(args);
  }
  static cudaError_t launch(const BatchNormGradientMapArgs& args, cudaStream_t stream) {
    return cuda::batch_norm_gradient_map(args, stream);
  }
};

}  // namespace mobilenet_ext
