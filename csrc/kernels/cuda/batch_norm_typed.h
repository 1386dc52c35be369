// The batch-norm ops of one storage type. Each is compiled from its own file, at the same time as
// the others.
#pragma once

#include "kernels/batch_norm.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/storage.h"

namespace mobilenet_ext::cuda {

template <typename T>
struct BatchNormOps {
  static int64_t workspace_bytes(const BatchNormStatisticsArgs& args);
  static int64_t workspace_bytes(const ScaleShiftActBackwardReduceArgs& args);
  static cudaError_t run(const BatchNormStatisticsArgs& args, cudaStream_t stream);
  static cudaError_t run(const ScaleShiftActArgs& args, cudaStream_t stream);
  static cudaError_t run(const ScaleShiftActBackwardReduceArgs& args, cudaStream_t stream);
  static cudaError_t run(const ScaleShiftActBackwardArgs& args, cudaStream_t stream);
};

}  // namespace mobilenet_ext::cuda
