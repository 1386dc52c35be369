// Arguments of image_patches, and what it computes: for every output pixel of a convolution the
// inputs that it reads, one after the other, so that the convolution is a matrix product. Elements
// are moved, whatever they are.
#pragma once

#include "kernels/conv_shape.h"

namespace mobilenet_ext {

// Rows are whole vectors of so many elements.
constexpr int kPatchLanes = 8;

struct ImagePatchesArgs {
  ConvShape shape;  // dilation 1
  int64_t columns;  // K * K * C, and zeros up to whole vectors
  DType dtype;
  const void* input;  // [N, H, W, C]
  void* output;       // [N * H' * W', columns], taps in rows, channels within
  void* workspace;
};

static inline int64_t patch_columns(const ConvShape& s) {
  const int64_t values = s.kernel * s.kernel * s.channels;
  return (values + kPatchLanes - 1) / kPatchLanes * kPatchLanes;
}

// A padded row and as many rows as the kernel has stay below this many values, so that 32 bits do.
constexpr int kMostPatchValues = 1 << 29;

// kLanes neighbouring columns of the patches of a row of output pixels: where they are from is
// found once. The values of a row of taps lie side by side in the image too.
template <typename T, int kLanes>
class PatchLanes {
 public:
  MOBILENET_EXT_HOST_DEVICE PatchLanes(const ConvShape& s, const T* image, int64_t y, int column)
      : step_(static_cast<int>(s.stride * s.channels)),
        left_(static_cast<int>(s.pad_left * s.channels)),
        width_(static_cast<unsigned int>(s.in_width * s.channels)) {
    const int line = static_cast<int>(s.kernel * s.channels), width = static_cast<int>(width_);
    const int64_t top = y * s.stride - s.pad_top;
    first_ = image + top * width;
    int tap_y = column / line, within = column - tap_y * line;
    for (int v = 0; v < kLanes; ++v) {
      const bool is_inside = tap_y < s.kernel && top + tap_y >= 0 && top + tap_y < s.in_height;
      within_[v] = is_inside ? within : kOutside;
      offset_[v] = tap_y * width + within;
      if (++within == line) ++tap_y, within = 0;
    }
  }

  // Of output pixel x; 0 outside of the image.
  MOBILENET_EXT_HOST_DEVICE T at(int x, int v) const {
    const int left = x * step_ - left_;
    const bool is_inside = static_cast<unsigned int>(left + within_[v]) < width_;
    return is_inside ? first_[left + offset_[v]] : T{};
  }

 private:
  static constexpr int kOutside = 1 << 30;  // of every row

  const T* first_;  // row of the first tap, which may be above the image
  int step_, left_;
  unsigned int width_;
  int within_[kLanes], offset_[kLanes];
};

}  // namespace mobilenet_ext
