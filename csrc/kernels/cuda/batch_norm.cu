// The batch-norm ops of any storage type.
#include "kernels/cuda/batch_norm_typed.h"

namespace mobilenet_ext::cuda {

namespace {

// Calls f(BatchNormOps<T>) with the storage type.
template <typename F>
auto dispatch(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat32: return f(BatchNormOps<float>{});
    case DType::kFloat64: return f(BatchNormOps<double>{});
    case DType::kBFloat16: return f(BatchNormOps<BFloat16>{});
    case DType::kFloat16: break;
  }
  return f(BatchNormOps<Float16>{});
}

template <typename Args>
int64_t workspace_bytes(const Args& args) {
  return dispatch(args.dtype, [&](auto ops) { return ops.workspace_bytes(args); });
}

template <typename Args>
cudaError_t run(const Args& args, cudaStream_t stream) {
  return dispatch(args.dtype, [&](auto ops) { return ops.run(args, stream); });
}

}  // namespace

int64_t batch_norm_statistics_workspace_bytes(const BatchNormStatisticsArgs& args) {
  return workspace_bytes(args);
}
cudaError_t batch_norm_statistics(const BatchNormStatisticsArgs& args, cudaStream_t stream) {
  return run(args, stream);
}

cudaError_t scale_shift_act(const ScaleShiftActArgs& args, cudaStream_t stream) {
  return run(args, stream);
}

int64_t scale_shift_act_backward_reduce_workspace_bytes(
    const ScaleShiftActBackwardReduceArgs& args) {
  return workspace_bytes(args);
}
cudaError_t scale_shift_act_backward_reduce(const ScaleShiftActBackwardReduceArgs& args,
                                            cudaStream_t stream) {
  return run(args, stream);
}

cudaError_t scale_shift_act_backward(const ScaleShiftActBackwardArgs& args, cudaStream_t stream) {
  return run(args, stream);
}

}  // namespace mobilenet_ext::cuda
