// The batch-norm ops of float32.
#include "kernels/cuda/batch_norm.inl.h"

namespace mobilenet_ext::cuda {
template struct BatchNormOps<float>;
}  // namespace mobilenet_ext::cuda
