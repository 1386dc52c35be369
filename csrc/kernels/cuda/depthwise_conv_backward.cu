// The backward depthwise convolution of any storage type.
#include "kernels/cuda/depthwise_conv_backward_typed.h"

namespace mobilenet_ext::cuda {

int64_t depthwise_conv_backward_workspace_bytes(const DepthwiseConvBackwardArgs& args) {
  switch (args.dtype) {
    case DType::kFloat32: return depthwise_conv_backward_workspace_bytes_of<float>(args);
    case DType::kFloat64: return depthwise_conv_backward_workspace_bytes_of<double>(args);
    case DType::kBFloat16: return depthwise_conv_backward_workspace_bytes_of<BFloat16>(args);
    case DType::kFloat16: return depthwise_conv_backward_workspace_bytes_of<Float16>(args);
  }
  return 0;
}

cudaError_t depthwise_conv_backward(const DepthwiseConvBackwardArgs& args, cudaStream_t stream) {
  switch (args.dtype) {
    case DType::kFloat32: return depthwise_conv_backward_of<float>(args, stream);
    case DType::kFloat64: return depthwise_conv_backward_of<double>(args, stream);
    case DType::kBFloat16: return depthwise_conv_backward_of<BFloat16>(args, stream);
    case DType::kFloat16: return depthwise_conv_backward_of<Float16>(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace mobilenet_ext::cuda
