// The CUDA ops on CPU tensors, registered under schemas that Python has copied from mobilenet_ext.
#include "bindings/depthwise_conv.h"
#include "device.h"

namespace mobilenet_ext {

STABLE_TORCH_LIBRARY_IMPL(mobilenet_ext_cuda_on_host, CPU, m) { implement_cuda_ops<CudaOnHost>(m); }

}  // namespace mobilenet_ext
