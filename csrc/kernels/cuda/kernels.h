// The whole CUDA interface. Each op enqueues its work on `stream` of the current device and returns
// what the launch returned; it allocates nothing and waits for nothing. `workspace` holds what the
// function beside the op asks for, if there is one. The work is split by the shape alone and merged
// in a fixed order without atomics, so that results are bitwise the same on every run and on every
// device.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/batch_norm.h"
#include "kernels/depthwise_conv.h"
#include "kernels/image_patches.h"

namespace mobilenet_ext::cuda {

int64_t depthwise_conv_workspace_bytes(const DepthwiseConvArgs& args);
cudaError_t depthwise_conv(const DepthwiseConvArgs& args, cudaStream_t stream);

int64_t depthwise_conv_backward_workspace_bytes(const DepthwiseConvBackwardArgs& args);
cudaError_t depthwise_conv_backward(const DepthwiseConvBackwardArgs& args, cudaStream_t stream);

int64_t batch_norm_statistics_workspace_bytes(const BatchNormStatisticsArgs& args);
cudaError_t batch_norm_statistics(const BatchNormStatisticsArgs& args, cudaStream_t stream);

cudaError_t image_patches(const ImagePatchesArgs& args, cudaStream_t stream);

cudaError_t scale_shift_act(const ScaleShiftActArgs& args, cudaStream_t stream);

int64_t scale_shift_act_backward_reduce_workspace_bytes(
    const ScaleShiftActBackwardReduceArgs& args);
cudaError_t scale_shift_act_backward_reduce(const ScaleShiftActBackwardReduceArgs& args,
                                            cudaStream_t stream);

cudaError_t scale_shift_act_backward(const ScaleShiftActBackwardArgs& args, cudaStream_t stream);

cudaError_t batch_norm_affine(const BatchNormAffineArgs& args, cudaStream_t stream);

cudaError_t batch_norm_gradient_map(const BatchNormGradientMapArgs& args, cudaStream_t stream);

}  // namespace mobilenet_ext::cuda
