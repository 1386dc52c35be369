// The per-channel maps of BatchNorm on a vector of channels in registers: act(x * scale + shift),
// its gradient, and BatchNorm's backward. Known at compile time where the forward convolution runs
// them for every tap, chosen at run time elsewhere.
#pragma once

#include <limits>

#include "kernels/cuda/packs.h"
#include "kernels/depthwise_conv.h"

namespace mobilenet_ext::cuda {

// An activation and its gradient that are not known until run time, without branches.
template <typename A>
struct ActivationBounds {
  A low, high;
  A flat_below, flat_above;  // NaN: nowhere

  ActivationBounds() = default;  // to be assigned
  explicit ActivationBounds(Activation activation) {
    const A infinity = std::numeric_limits<A>::infinity();
    const A nowhere = std::numeric_limits<A>::quiet_NaN();
    const bool has_low = activation != Activation::kNone;
    const bool has_high = activation == Activation::kRelu6;
    low = has_low ? A{0} : -infinity;
    high = has_high ? A{6} : infinity;
    flat_below = has_low ? low : nowhere;
    flat_above = has_high ? high : nowhere;
  }
  // Those of a map that may not be there.
  explicit ActivationBounds(const ScaleShiftAct& map)
      : ActivationBounds(map.scale ? map.activation : Activation::kNone) {}

  __device__ A activate(A y) const { return not_above(not_below(y, low), high); }
  __device__ A gradient(A grad, A y) const {
    return y <= flat_below || y >= flat_above ? A{0} : grad;
  }
};

// Channels [channel, channel + kLanes) of a per-channel vector, which need not be aligned.
template <typename A, int kLanes>
inline __device__ void load_vector(const void* vector, int64_t channel, A (&to)[kLanes]) {
  for (int v = 0; v < kLanes; ++v) to[v] = static_cast<const A*>(vector)[channel + v];
}

// The same; `otherwise` for all channels if there is no vector.
template <typename A, int kLanes>
inline __device__ void load_vector_or(A otherwise, const void* vector, int64_t channel,
                                      A (&to)[kLanes]) {
  for (int v = 0; v < kLanes; ++v) {
    to[v] = vector ? static_cast<const A*>(vector)[channel + v] : otherwise;
  }
}

// Tap `tap` of kLanes channels.
template <typename T, typename Args, typename A, int kLanes>
inline __device__ void load_weight(const Args& args, int64_t channel, int64_t tap,
                                   A (&to)[kLanes]) {
  const T* weight = static_cast<const T*>(args.weight) + tap * args.weight_tap_stride;
  for (int v = 0; v < kLanes; ++v)
    to[v] = decode(weight[(channel + v) * args.weight_channel_stride]);
}

// y * scale + shift, before an activation chosen at run time.
template <typename A, int kLanes>
struct Affine {
  Pack<A, kLanes> scale, shift;

  __device__ void load(const ScaleShiftAct& map, int64_t channel) {
    load_vector_or(A{1}, map.scale, channel, scale.at);
    load_vector_or(A{0}, map.scale ? map.shift : nullptr, channel, shift.at);
  }
  __device__ A operator()(int v, A y) const { return y * scale.at[v] + shift.at[v]; }
};

// The prologues of a convolution. Padding, of which they are given zeros, is 0 behind them: by a
// mask, which is made once for many values.
template <typename A, int kLanes>
struct Identity {
  using Mask = bool;
  static __device__ Mask mask(bool inside) { return inside; }

  __device__ void load(const ScaleShiftAct&, const ActivationBounds<A>&, int64_t) {}
  __device__ void operator()(A (&)[kLanes], Mask) const {}
};

// Its mask is the activation's upper bound, or 0, or else a factor: it costs no more than they do.
// NaN gets past it: padding is NaN where a channel's own scale or shift makes a 0 NaN.
template <typename A, int kLanes, Activation kActivation>
struct Normalize {
  static constexpr bool kIsBounded = kActivation != Activation::kNone;
  static constexpr A kInside = kActivation == Activation::kRelu6 ? A{6}
                               : kActivation == Activation::kRelu
                                   ? std::numeric_limits<A>::infinity()
                                   : A{1};
  using Mask = A;
  A scale[kLanes], shift[kLanes];

  static __device__ Mask mask(bool inside) { return in_register(inside ? kInside : A{0}); }

  __device__ void load(const ScaleShiftAct& map, const ActivationBounds<A>&, int64_t channel) {
    load_vector(map.scale, channel, scale);
    load_vector(map.shift, channel, shift);
  }

  __device__ void operator()(A (&y)[kLanes], Mask mask) const {
    for (int v = 0; v < kLanes; ++v) {
      y[v] = y[v] * scale[v] + shift[v];
      if constexpr (kIsBounded) {
        y[v] = not_above(not_below(y[v], A{0}), mask);
      } else {
        y[v] *= mask;
      }
    }
  }
};

// Any of the above, chosen at run time.
template <typename A, int kLanes>
struct Bounded {
  using Mask = bool;
  Affine<A, kLanes> map;
  ActivationBounds<A> activation;

  static __device__ Mask mask(bool inside) { return inside; }

  __device__ void load(const ScaleShiftAct& of, const ActivationBounds<A>& bounds,
                       int64_t channel) {
    activation = bounds;
    map.load(of, channel);
  }

  __device__ void operator()(A (&y)[kLanes], Mask mask) const {
    for (int v = 0; v < kLanes; ++v) y[v] = mask ? activation.activate(map(v, y[v])) : A{0};
  }
};

// The gradient of a raw output, from the gradient of what BatchNorm and activation made of it.
template <typename A, int kLanes>
struct RawGradient {
  Affine<A, kLanes> map;
  Pack<A, kLanes> grad_scale, raw_scale, raw_shift;

  __device__ void load(const ScaleShiftAct& epilogue, const GradientMap& gradient,
                       int64_t channel) {
    map.load(epilogue, channel);
    load_vector_or(A{1}, gradient.grad_scale, channel, grad_scale.at);
    load_vector_or(A{0}, gradient.raw_scale, channel, raw_scale.at);
    load_vector_or(A{0}, gradient.raw_shift, channel, raw_shift.at);
  }

  // Of as many pixels as there are values. `has_terms`: of the raw output; without them it may be
  // infinite or NaN and does not matter.
  template <int kValues>
  __device__ void operator()(A (&grad)[kValues], const A (&raw)[kValues],
                             const ActivationBounds<A>& activation, bool has_terms) const {
    for (int i = 0; i < kValues; ++i) {
      const int v = i % kLanes;
      const A dy = activation.gradient(grad[i], map(v, raw[i]));
      grad[i] = dy * grad_scale.at[v] + raw_shift.at[v];
      if (has_terms) grad[i] += raw[i] * raw_scale.at[v];
    }
  }
};

}  // namespace mobilenet_ext::cuda
