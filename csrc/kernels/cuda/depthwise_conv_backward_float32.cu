// The backward depthwise convolution of float32.
#include "kernels/cuda/depthwise_conv_backward.inl.h"

namespace mobilenet_ext::cuda {
template int64_t depthwise_conv_backward_workspace_bytes_of<float>(
    const DepthwiseConvBackwardArgs&);
template cudaError_t depthwise_conv_backward_of<float>(const DepthwiseConvBackwardArgs&,
                                                       cudaStream_t);
}  // namespace mobilenet_ext::cuda
