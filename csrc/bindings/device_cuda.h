// Runs the CUDA kernels: on the input's device, on torch's current stream there, with workspace
// from torch's allocator, which keeps it from other streams until the kernels are done with it.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "bindings/cuda_ops.h"

namespace mobilenet_ext {

struct Cuda {
  static constexpr bool kHasNchw = true;
  static constexpr bool kHasPointwise = false;

  template <typename Args>
  static void run(Args args, const Tensor& like) {
    const int32_t device = like.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    OptionalTensor workspace;  // most ops take none, and to ask for nothing takes as long
    if (const int64_t bytes = CudaKernels::workspace_bytes(args)) {
      workspace = empty_vector(like, ScalarType::Byte, bytes);
      args.workspace = workspace->mutable_data_ptr();
    }
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    const cudaError_t error = CudaKernels::launch(args, static_cast<cudaStream_t>(stream));
    if (error == cudaSuccess) return;
    fail(CudaKernels::name_of(args), "CUDA kernels must start, got ", cudaGetErrorName(error), ": ",
         cudaGetErrorString(error));
  }
};

}  // namespace mobilenet_ext
