// Where the values of a map lie, in either layout, and what a thread takes of it at once: a vector
// of channels of one pixel, or of pixels of one channel. A single value is both.
#pragma once

#include "kernels/cuda/packs.h"

namespace mobilenet_ext::cuda {

// In elements, from one to the next.
struct MapStrides {
  int64_t image, row, pixel, channel;

  MOBILENET_EXT_HOST_DEVICE int64_t at(int64_t image_index, int64_t y, int64_t x) const {
    return image_index * image + y * row + x * pixel;
  }
};

inline MapStrides strides_of(Layout layout, int64_t channels, int64_t height, int64_t width) {
  const int64_t plane = height * width, image = channels * plane;
  if (layout == Layout::kNchw) return {image, width, 1, plane};
  return {image, width * channels, channels, 1};
}

// kLanes channels of a pixel: NHWC, or of any layout where it is one.
template <typename StorageT, int kLanesT>
struct Channels {
  using T = StorageT;
  static constexpr int kLanes = kLanesT, kPack = 1, kPadLeft = 0;
  static __device__ unsigned int pixel(const MapStrides& strides) {
    return static_cast<unsigned int>(strides.pixel);
  }
};

// kPack neighbouring pixels of a channel: NCHW, where rows are whole numbers of them. A convolution
// with such has the padding kPadLeft on the left, so that it is known where in a vector an input
// is.
template <typename StorageT, int kPackT, int kPadLeftT = 0>
struct Pixels {
  using T = StorageT;
  static constexpr int kLanes = 1, kPack = kPackT, kPadLeft = kPadLeftT;
  static __device__ unsigned int pixel(const MapStrides&) { return 1; }
};

// All that one access moves.
template <typename V>
constexpr int kWide = V::kLanes * V::kPack;
template <typename V>
using Vector = Pack<typename V::T, kWide<V>>;

}  // namespace mobilenet_ext::cuda
