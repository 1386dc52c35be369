// The depthwise convolution of float32.
#include "kernels/cuda/depthwise_conv.inl.h"

namespace mobilenet_ext::cuda {
template int64_t depthwise_conv_workspace_bytes_of<float>(const DepthwiseConvArgs&);
template cudaError_t depthwise_conv_of<float>(const DepthwiseConvArgs&, cudaStream_t);
}  // namespace mobilenet_ext::cuda
