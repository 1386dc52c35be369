// The backward depthwise convolution of bfloat16.
#include "kernels/cuda/depthwise_conv_backward.inl.h"

namespace mobilenet_ext::cuda {
template int64_t depthwise_conv_backward_workspace_bytes_of<BFloat16>(
    const DepthwiseConvBackwardArgs&);
template cudaError_t depthwise_conv_backward_of<BFloat16>(const DepthwiseConvBackwardArgs&,
                                                          cudaStream_t);
}  // namespace mobilenet_ext::cuda
