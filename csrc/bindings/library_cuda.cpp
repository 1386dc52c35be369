// The CUDA kernels, registered under the schemas of library.cpp, which is loaded before.
#include "bindings/cuda_ops.h"
#include "bindings/device_cuda.h"

namespace mobilenet_ext {

STABLE_TORCH_LIBRARY_IMPL(mobilenet_ext, CUDA, m) { implement_cuda_ops<Cuda>(m); }

}  // namespace mobilenet_ext
