// The batch-norm ops of float64.
#include "kernels/cuda/batch_norm.inl.h"

namespace mobilenet_ext::cuda {
template struct BatchNormOps<double>;
}  // namespace mobilenet_ext::cuda
