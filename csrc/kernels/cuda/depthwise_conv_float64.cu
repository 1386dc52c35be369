// The depthwise convolution of float64: for checking gradients, without the sliding window.
#include "kernels/cuda/depthwise_conv.inl.h"

namespace mobilenet_ext::cuda {
template int64_t depthwise_conv_workspace_bytes_of<double>(const DepthwiseConvArgs&);
template cudaError_t depthwise_conv_of<double>(const DepthwiseConvArgs&, cudaStream_t);
}  // namespace mobilenet_ext::cuda
