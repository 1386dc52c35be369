// The batch-norm ops of float16.
#include "kernels/cuda/batch_norm.inl.h"

namespace mobilenet_ext::cuda {
template struct BatchNormOps<Float16>;
}  // namespace mobilenet_ext::cuda
