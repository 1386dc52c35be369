// Runs the CUDA kernels: on the input's device, on torch's current stream there, with workspace
// from torch's allocator, which keeps it from other streams until the kernels are done with it.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "bindings/checks.h"
#include "kernels/cuda/kernels.h"

namespace mobilenet_ext {

struct Cuda {
  template <typename Args>
  static void run(Args args, const Tensor& like) {
    const int32_t device = like.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    const Tensor workspace = empty_vector(like, ScalarType::Byte, workspace_bytes(args));
    args.workspace = workspace.mutable_data_ptr();
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    const cudaError_t error = launch(args, static_cast<cudaStream_t>(stream));
    if (error == cudaSuccess) return;
    fail(name_of(args), "CUDA kernels must start, got ", cudaGetErrorName(error), ": ",
         cudaGetErrorString(error));
  }

 private:
  static const char* name_of(const DepthwiseConvArgs&) { return "depthwise_conv"; }
  static int64_t workspace_bytes(const DepthwiseConvArgs& args) {
    return cuda::depthwise_conv_workspace_bytes(args);
  }
  static cudaError_t launch(const DepthwiseConvArgs& args, cudaStream_t stream) {
    return cuda::depthwise_conv(args, stream);
  }
};

}  // namespace mobilenet_ext
