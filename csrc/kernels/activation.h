// The activations and their gradients, written once for scalars and vectors, CPU and CUDA.
// As in torch: NaN passes forward, the gradient is 0 at the kinks and passes where y is NaN.
#pragma once

#include "kernels/types.h"

namespace mobilenet_ext {

enum class Activation : int32_t { kNone, kRelu, kRelu6 };

// V is a floating-point scalar or a vector of them.
template <typename V>
static MOBILENET_EXT_HOST_DEVICE inline V not_below(V y, V low) {
  return y < low ? low : y;
}

template <typename V>
static MOBILENET_EXT_HOST_DEVICE inline V not_above(V y, V high) {
  return y > high ? high : y;
}

// y, or 0 below 0, or 6 above 6.
template <Activation kActivation, typename V>
static MOBILENET_EXT_HOST_DEVICE inline V activate(V y) {
  if constexpr (kActivation == Activation::kNone) return y;
  const V zero = V{};
  y = not_below(y, zero);
  if constexpr (kActivation == Activation::kRelu6) y = not_above(y, zero + 6);
  return y;
}

// The gradient `grad` of activate(y) carried back to y; activate(y) will do for y.
template <Activation kActivation, typename V>
static MOBILENET_EXT_HOST_DEVICE inline V activation_gradient(V grad, V y) {
  if constexpr (kActivation == Activation::kNone) return grad;
  const V zero = V{};
  grad = y <= zero ? zero : grad;
  if constexpr (kActivation == Activation::kRelu6) {
    const V six = zero + 6;
    grad = y >= six ? zero : grad;
  }
  return grad;
}

}  // namespace mobilenet_ext
