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

// Elements from a row's first column to the others, in registers.
template <int kCount>
struct ColumnOffsets {
  unsigned int at[kCount];

  explicit __device__ ColumnOffsets(unsigned int pixel) {
    for (int i = 0; i < kCount; ++i) at[i] = in_register(i * pixel);
  }
};

// kCount neighbouring columns of a row as they were loaded, in as few registers as they can be.
// They begin kFirst columns after one where a vector of pixels would begin.
template <typename V, int kFirst, int kCount>
class Columns {
 public:
  using T = typename V::T;
  using A = Accumulator<T>;

  // `from`: the first column; has(i): whether column i, and with it its vector, is in the image.
  // Those that are not stay as they are.
  template <typename Has>
  __device__ void load(const T* from, const ColumnOffsets<kCount>& offsets, Has has) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (!is_in_vector(i)) {
        if (has(i)) single_[i] = load_word<Single>(from + offsets.at[i]);
      } else if ((kFirst + i) % V::kPack == 0) {
        if (has(i)) vector_[i / V::kPack] = load_word<Vector<V>>(from + i);
      }
    }
  }

  __device__ void decode(int i, A (&to)[V::kLanes]) const {
    if (!is_in_vector(i)) return decode_pack(unpack<Single>(single_[i]), to);
    const int at = (kFirst + i) % V::kPack;
    A all[kWide<V>];
    decode_pack(unpack<Vector<V>>(vector_[(i - at) / V::kPack]), all);
    to[0] = all[at];
  }

 private:
  using Single = Pack<T, V::kLanes>;

  // Whether column i is in a vector that has all its columns here.
  static constexpr __device__ bool is_in_vector(int i) {
    const int column = kFirst + i, begin = column - column % V::kPack;
    return V::kPack > 1 && column >= 0 && begin >= kFirst && begin + V::kPack <= kFirst + kCount;
  }

  Word<Single> single_[kCount];
  Word<Vector<V>> vector_[kCount / V::kPack];
};

}  // namespace mobilenet_ext::cuda
