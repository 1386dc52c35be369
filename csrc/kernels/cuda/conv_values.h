// By which vectors the maps of a convolution are moved, forward and backward: chosen from the
// layout, the shape and the addresses.
#pragma once

#include <type_traits>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/map_vectors.h"
#include "kernels/depthwise_conv.h"

namespace mobilenet_ext::cuda {

using Pointers = std::initializer_list<const void*>;

template <typename V>
struct Moves;

template <typename T, int kLanes>
struct Moves<Channels<T, kLanes>> {
  static bool fit(Layout layout, const ConvShape& s) {
    return layout == Layout::kNhwc && s.channels % kLanes == 0;
  }
};

// Then whole vectors are inside the image or outside.
template <typename T, int kPack, int kPadLeft>
struct Moves<Pixels<T, kPack, kPadLeft>> {
  static bool fit(Layout layout, const ConvShape& s) {
    return layout == Layout::kNchw && s.in_width % kPack == 0 && s.out_width % kPack == 0 &&
           s.pad_left == kPadLeft;
  }
};

template <typename V, typename Args>
bool moves_by(const Args& args, Pointers maps) {
  return Moves<V>::fit(args.layout, args.shape) && are_aligned<Vector<V>>(maps);
}

// Whether a sliding window can take it: 3 x 3, stride 1 or 2.
inline bool slides(const ConvShape& s) { return s.kernel == 3 && s.dilation == 1 && s.stride <= 2; }

// Four, as of channels: see there.
constexpr int kPixels = 4;

// Calls f(TypeTag<V>, stride as a constant) for a convolution that slides.
template <typename T, typename Args, typename F>
void dispatch_sliding(const Args& args, Pointers maps, F f) {
  const auto at_stride = [&](auto stride) {
    using Wide = Channels<T, kChannelLanes<T>>;
    if (moves_by<Wide>(args, maps)) return f(TypeTag<Wide>{}, stride);
    using Padded = Pixels<T, kPixels, 1>;
    if (moves_by<Padded>(args, maps)) return f(TypeTag<Padded>{}, stride);
    if constexpr (stride.value == 2) {
      using Unpadded = Pixels<T, kPixels, 0>;
      if (moves_by<Unpadded>(args, maps)) return f(TypeTag<Unpadded>{}, stride);
    }
    f(TypeTag<Channels<T, 1>>{}, stride);
  };
  if (args.shape.stride == 1) return at_stride(std::integral_constant<int, 1>{});
  at_stride(std::integral_constant<int, 2>{});
}

}  // namespace mobilenet_ext::cuda
