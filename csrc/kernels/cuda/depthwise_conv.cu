// The depthwise convolution of any storage type.
#include "kernels/cuda/depthwise_conv_typed.h"

namespace mobilenet_ext::cuda {

int64_t depthwise_conv_workspace_bytes(const DepthwiseConvArgs& args) {
  switch (args.dtype) {
    case DType::kFloat32: return depthwise_conv_workspace_bytes_of<float>(args);
    case DType::kFloat64: return depthwise_conv_workspace_bytes_of<double>(args);
    case DType::kBFloat16: return depthwise_conv_workspace_bytes_of<BFloat16>(args);
    case DType::kFloat16: return depthwise_conv_workspace_bytes_of<Float16>(args);
  }
  return 0;
}

cudaError_t depthwise_conv(const DepthwiseConvArgs& args, cudaStream_t stream) {
  switch (args.dtype) {
    case DType::kFloat32: return depthwise_conv_of<float>(args, stream);
    case DType::kFloat64: return depthwise_conv_of<double>(args, stream);
    case DType::kBFloat16: return depthwise_conv_of<BFloat16>(args, stream);
    case DType::kFloat16: return depthwise_conv_of<Float16>(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace mobilenet_ext::cuda
