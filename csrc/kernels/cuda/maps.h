// act(x * scale + shift) on a vector of channels in registers: known at compile time where it runs
// for every tap of a convolution, chosen at run time where it runs once for an output.
#pragma once

#include "kernels/cuda/storage.h"
#include "kernels/depthwise_conv.h"

namespace mobilenet_ext::cuda {

// Channels [channel, channel + kLanes) of a per-channel vector, which need not be aligned.
template <typename A, int kLanes>
inline __device__ void load_vector(const void* vector, int64_t channel, A (&to)[kLanes]) {
  for (int v = 0; v < kLanes; ++v) to[v] = static_cast<const A*>(vector)[channel + v];
}

template <Activation kActivation, typename A, int kLanes>
inline __device__ void activate_all(A (&y)[kLanes]) {
  for (int v = 0; v < kLanes; ++v) y[v] = activate<kActivation>(y[v]);
}

template <typename A, int kLanes>
struct Identity {
  static constexpr bool kKeepsZero = true;
  __device__ Identity(const ScaleShiftAct&, int64_t) {}
  __device__ void operator()(A (&)[kLanes]) const {}
};

template <typename A, int kLanes, Activation kActivation>
struct Normalize {
  static constexpr bool kKeepsZero = false;
  A scale[kLanes], shift[kLanes];

  __device__ Normalize(const ScaleShiftAct& map, int64_t channel) {
    load_vector(map.scale, channel, scale);
    load_vector(map.shift, channel, shift);
  }

  __device__ void operator()(A (&y)[kLanes]) const {
    for (int v = 0; v < kLanes; ++v) y[v] = y[v] * scale[v] + shift[v];
    activate_all<kActivation>(y);
  }
};

// Any of the above; all threads of a launch take the same branch.
template <typename A, int kLanes>
struct AnyMap {
  static constexpr bool kKeepsZero = false;
  A scale[kLanes] = {}, shift[kLanes] = {};
  Activation activation;
  bool is_identity;

  __device__ AnyMap(const ScaleShiftAct& map, int64_t channel)
      : activation(map.activation), is_identity(!map.scale) {
    if (is_identity) return;
    load_vector(map.scale, channel, scale);
    load_vector(map.shift, channel, shift);
  }

  __device__ void operator()(A (&y)[kLanes]) const {
    if (is_identity) return;
    for (int v = 0; v < kLanes; ++v) y[v] = y[v] * scale[v] + shift[v];
    switch (activation) {
      case Activation::kNone: return;
      case Activation::kRelu: return activate_all<Activation::kRelu>(y);
      case Activation::kRelu6: return activate_all<Activation::kRelu6>(y);
    }
  }
};

}  // namespace mobilenet_ext::cuda
