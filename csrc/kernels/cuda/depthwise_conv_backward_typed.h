// The backward depthwise convolution of one storage type, each compiled from its own file.
#pragma once

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/storage.h"

namespace mobilenet_ext::cuda {

template <typename T>
int64_t depthwise_conv_backward_workspace_bytes_of(const DepthwiseConvBackwardArgs& args);
template <typename T>
cudaError_t depthwise_conv_backward_of(const DepthwiseConvBackwardArgs& args, cudaStream_t stream);

}  // namespace mobilenet_ext::cuda
