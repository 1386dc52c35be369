// From run-time values to compile-time constants, without macros.
#pragma once

#include "kernels/activation.h"

namespace mobilenet_ext {

template <Activation kValue>
struct ActivationConstant {
  static constexpr Activation value = kValue;
};

// Calls f(ActivationConstant<...>{}) for the given activation.
template <typename F>
static inline void dispatch_activation(Activation activation, F f) {
  switch (activation) {
    case Activation::kNone: return f(ActivationConstant<Activation::kNone>{});
    case Activation::kRelu: return f(ActivationConstant<Activation::kRelu>{});
    case Activation::kRelu6: return f(ActivationConstant<Activation::kRelu6>{});
  }
}

}  // namespace mobilenet_ext
