// The ops that have CUDA kernels: the list for the dispatcher, for any Device that can run them,
// and the entry points of kernels/cuda/kernels.h by their arguments.
#pragma once

#include "bindings/batch_norm.h"
#include "bindings/batch_norm_vectors.h"
#include "bindings/depthwise_conv.h"
#include "bindings/image_patches.h"
#include "bindings/separable_convs.h"
#include "kernels/cuda/kernels.h"

namespace mobilenet_ext {

template <typename Device, typename Library>
void implement_cuda_ops(Library& m) {
  m.impl("depthwise_conv", TORCH_BOX(&depthwise_conv<Device>));
  m.impl("depthwise_conv_backward", TORCH_BOX(&depthwise_conv_backward<Device>));
  m.impl("separable_convs", TORCH_BOX(&separable_convs<Device>));
  m.impl("separable_convs_backward", TORCH_BOX(&separable_convs_backward<Device>));
  m.impl("image_patches", TORCH_BOX(&image_patches<Device>));
  m.impl("batch_norm_statistics", TORCH_BOX(&batch_norm_statistics<Device>));
  m.impl("scale_shift_act", TORCH_BOX(&scale_shift_act<Device>));
  m.impl("scale_shift_act_backward_reduce", TORCH_BOX(&scale_shift_act_backward_reduce<Device>));
  m.impl("scale_shift_act_backward", TORCH_BOX(&scale_shift_act_backward<Device>));
  m.impl("batch_norm_affine", TORCH_BOX(&batch_norm_affine<Device>));
  m.impl("batch_norm_gradient_map", TORCH_BOX(&batch_norm_gradient_map<Device>));
}

struct CudaKernels {
  template <typename Args>
  static const char* name_of(const Args& args) {
    return entry_of(args).name;
  }
  template <typename Args>
  static int64_t workspace_bytes(const Args& args) {
    return entry_of(args).workspace_bytes(args);
  }
  template <typename Args>
  static cudaError_t launch(const Args& args, cudaStream_t stream) {
    return entry_of(args).run(args, stream);
  }

 private:
  template <typename Args>
  struct Entry {
    const char* name;
    int64_t (*workspace_bytes)(const Args&);
    cudaError_t (*run)(const Args&, cudaStream_t);
  };

  static Entry<DepthwiseConvArgs> entry_of(const DepthwiseConvArgs&) {
    return {"depthwise_conv", cuda::depthwise_conv_workspace_bytes, cuda::depthwise_conv};
  }
  static Entry<DepthwiseConvBackwardArgs> entry_of(const DepthwiseConvBackwardArgs&) {
    return {"depthwise_conv_backward", cuda::depthwise_conv_backward_workspace_bytes,
            cuda::depthwise_conv_backward};
  }
  static Entry<BatchNormStatisticsArgs> entry_of(const BatchNormStatisticsArgs&) {
    return {"batch_norm_statistics", cuda::batch_norm_statistics_workspace_bytes,
            cuda::batch_norm_statistics};
  }
  static Entry<ImagePatchesArgs> entry_of(const ImagePatchesArgs&) {
    return {"image_patches", no_bytes, cuda::image_patches};
  }
  static Entry<ScaleShiftActArgs> entry_of(const ScaleShiftActArgs&) {
    return {"scale_shift_act", no_bytes, cuda::scale_shift_act};
  }
  static Entry<ScaleShiftActBackwardReduceArgs> entry_of(const ScaleShiftActBackwardReduceArgs&) {
    return {"scale_shift_act_backward_reduce",
            cuda::scale_shift_act_backward_reduce_workspace_bytes,
            cuda::scale_shift_act_backward_reduce};
  }
  static Entry<ScaleShiftActBackwardArgs> entry_of(const ScaleShiftActBackwardArgs&) {
    return {"scale_shift_act_backward", no_bytes, cuda::scale_shift_act_backward};
  }
  static Entry<BatchNormAffineArgs> entry_of(const BatchNormAffineArgs&) {
    return {"batch_norm_affine", no_bytes, cuda::batch_norm_affine};
  }
  static Entry<BatchNormGradientMapArgs> entry_of(const BatchNormGradientMapArgs&) {
    return {"batch_norm_gradient_map", no_bytes, cuda::batch_norm_gradient_map};
  }

  template <typename Args>
  static int64_t no_bytes(const Args&) {
    return 0;
  }
};

}  // namespace mobilenet_ext
