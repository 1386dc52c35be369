// The backward depthwise convolution of float64: for checking gradients, without the sliding
// window.
#include "kernels/cuda/depthwise_conv_backward.inl.h"

namespace mobilenet_ext::cuda {
template int64_t depthwise_conv_backward_workspace_bytes_of<double>(
    const DepthwiseConvBackwardArgs&);
template cudaError_t depthwise_conv_backward_of<double>(const DepthwiseConvBackwardArgs&,
                                                        cudaStream_t);
}  // namespace mobilenet_ext::cuda
