// The depthwise convolution of one storage type. nvcc takes some ten seconds for each, so each is
// compiled from its own file, at the same time as the others.
#pragma once

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/storage.h"

namespace mobilenet_ext::cuda {

template <typename T>
int64_t depthwise_conv_workspace_bytes_of(const DepthwiseConvArgs& args);
template <typename T>
cudaError_t depthwise_conv_of(const DepthwiseConvArgs& args, cudaStream_t stream);

}  // namespace mobilenet_ext::cuda
