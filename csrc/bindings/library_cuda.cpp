// The CUDA kernels, registered under the schemas of library.cpp, which is loaded before.
#include "bindings/depthwise_conv.h"
#include "bindings/device_cuda.h"

namespace mobilenet_ext {

STABLE_TORCH_LIBRARY_IMPL(mobilenet_ext, CUDA, m) {
  m.impl("depthwise_conv", TORCH_BOX(&depthwise_conv<Cuda>));
}

}  // namespace mobilenet_ext
