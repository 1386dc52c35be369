// The bounds of activations, in CUDA's own max and min. NaN passes them, as it does a comparison.
#pragma once

#include "kernels/activation.h"

namespace mobilenet_ext {

#ifdef __CUDACC__

// From sm_80 on an instruction each, where the comparison and the choice of activation.h are two.
template <>
inline __device__ float not_below(float y, float low) {
#if __CUDA_ARCH__ < 800
  return y < low ? low : y;
#else
  float bounded;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(bounded) : "f"(y), "f"(low));
  return bounded;
#endif
}

template <>
inline __device__ float not_above(float y, float high) {
#if __CUDA_ARCH__ < 800
  return y > high ? high : y;
#else
  float bounded;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(bounded) : "f"(y), "f"(high));
  return bounded;
#endif
}

#endif

}  // namespace mobilenet_ext
