// The per-channel maps of BatchNorm on one vector of channels, held in registers: normalising with
// activation, its gradient, and BatchNorm's backward. Which map applies is a template argument.
#pragma once

#include "kernels/cpu/vec.h"
#include "kernels/depthwise_conv.h"
#include "kernels/dispatch.h"

namespace mobilenet_ext::cpu {
namespace {

// ScaleShiftAct and GradientMap for a block of channels, typed.
template <typename A>
struct ChannelMap {
  ChannelMap(const ScaleShiftAct& map, int64_t channel)
      : scale(at(map.scale, channel)), shift(at(map.shift, channel)), activation(map.activation) {}

  static const A* at(const void* vector, int64_t channel) {
    return vector ? static_cast<const A*>(vector) + channel : nullptr;
  }

  const A* scale;
  const A* shift;
  Activation activation;
};

template <typename A>
struct ChannelGradient : ChannelMap<A> {
  ChannelGradient(const ScaleShiftAct& map, const GradientMap& gradient, int64_t channel)
      : ChannelMap<A>(map, channel),
        grad_scale(this->at(gradient.grad_scale, channel)),
        raw_scale(this->at(gradient.raw_scale, channel)),
        raw_shift(this->at(gradient.raw_shift, channel)) {}

  const A* grad_scale;
  const A* raw_scale;
  const A* raw_shift;
};

template <typename A>
struct Identity {
  template <typename Lanes>
  Identity(const ChannelMap<A>&, int64_t, Lanes) {}
  Vec<A> operator()(Vec<A> x) const { return x; }
  Vec<A> gradient(Vec<A> grad, Vec<A>) const { return grad; }
};

template <typename A, Activation kActivation>
struct Normalize {
  template <typename Lanes>
  Normalize(const ChannelMap<A>& map, int64_t c, Lanes lanes)
      : scale(load(map.scale + c, lanes)), shift(load(map.shift + c, lanes)) {}

  Vec<A> operator()(Vec<A> x) const { return activate<kActivation>(x * scale + shift); }
  Vec<A> gradient(Vec<A> grad, Vec<A> x) const {
    return activation_gradient<kActivation>(grad, x * scale + shift);
  }

  Vec<A> scale, shift;
};

// What a gradient meets on load: nothing, frozen BatchNorm's scale, or BatchNorm's whole backward.
// They differ for infinite and NaN activations, which only the last one may look at.
enum class GradientKind { kIdentity, kScale, kBatchNorm };

template <typename A, typename Map, GradientKind kKind>
struct RawGradient {
  template <typename Lanes>
  RawGradient(const ChannelGradient<A>& params, int64_t c, Lanes lanes) : map(params, c, lanes) {
    if constexpr (kKind != GradientKind::kIdentity) grad_scale = load(params.grad_scale + c, lanes);
    if constexpr (kKind == GradientKind::kBatchNorm) {
      raw_scale = load(params.raw_scale + c, lanes);
      raw_shift = load(params.raw_shift + c, lanes);
    }
  }

  Vec<A> operator()(Vec<A> grad, Vec<A> raw) const {
    const Vec<A> dy = map.gradient(grad, raw);
    if constexpr (kKind == GradientKind::kIdentity) return dy;
    if constexpr (kKind == GradientKind::kScale) return dy * grad_scale;
    return dy * grad_scale + (raw * raw_scale + raw_shift);
  }

  Map map;
  Vec<A> grad_scale{}, raw_scale{}, raw_shift{};
};

template <typename M>
struct TypeTag {
  using type = M;
};

// Calls f(TypeTag<Map>{}) with the map that `params` asks for.
template <typename A, typename F>
inline void dispatch_map(const ChannelMap<A>& params, F f) {
  if (!params.scale) return f(TypeTag<Identity<A>>{});
  dispatch_activation(params.activation, [&](auto activation) {
    f(TypeTag<Normalize<A, decltype(activation)::value>>{});
  });
}

template <typename A, typename F>
inline void dispatch_gradient(const ChannelGradient<A>& params, F f) {
  dispatch_map<A>(params, [&](auto map) {
    using Map = typename decltype(map)::type;
    if (!params.grad_scale) {
      f(TypeTag<RawGradient<A, Map, GradientKind::kIdentity>>{});
    } else if (!params.raw_scale) {
      f(TypeTag<RawGradient<A, Map, GradientKind::kScale>>{});
    } else {
      f(TypeTag<RawGradient<A, Map, GradientKind::kBatchNorm>>{});
    }
  });
}

}  // namespace
}  // namespace mobilenet_ext::cpu
