// The batch-norm ops of bfloat16.
#include "kernels/cuda/batch_norm.inl.h"

namespace mobilenet_ext::cuda {
template struct BatchNormOps<BFloat16>;
}  // namespace mobilenet_ext::cuda
