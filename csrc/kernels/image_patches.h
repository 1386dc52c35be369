// Arguments of image_patches, and what it computes: for every output pixel of a convolution the
// inputs that it reads, one after the other, so that the convolution is a matrix product. Elements
// are moved, whatever they are.
#pragma once

#include "kernels/conv_shape.h"

namespace mobilenet_ext {

// Rows are whole vectors of so many elements.
constexpr int64_t kPatchLanes = 8;

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

// Reads the patch of an output pixel, value by value from a column on; 0 outside of the image. The
// values of a row of taps lie side by side in the image too.
template <typename T>
class PatchReader {
 public:
  MOBILENET_EXT_HOST_DEVICE PatchReader(const ConvShape& s, const T* image, int64_t y, int64_t x,
                                        int column)
      : shape_(s),
        image_(image),
        top_(y * s.stride - s.pad_top),
        left_(static_cast<int>((x * s.stride - s.pad_left) * s.channels)),
        width_(static_cast<int>(s.in_width * s.channels)),
        line_(static_cast<int>(s.kernel * s.channels)) {
    start_line(column / line_, column % line_);
  }

  MOBILENET_EXT_HOST_DEVICE T next() {
    const int at = left_ + value_;
    const T value = is_inside_ && at >= 0 && at < width_ ? row_[at] : T{};
    if (++value_ == line_) start_line(tap_ + 1, 0);
    return value;
  }

 private:
  MOBILENET_EXT_HOST_DEVICE void start_line(int tap, int value) {
    tap_ = tap, value_ = value;
    const int64_t y = top_ + tap;
    is_inside_ = tap < shape_.kernel && y >= 0 && y < shape_.in_height;
    row_ = image_ + y * width_;
  }

  const ConvShape& shape_;
  const T *image_, *row_;
  int64_t top_;  // row of the first tap
  int left_, width_, line_;
  int tap_, value_;  // row of taps, and value in it
  bool is_inside_;
};

}  // namespace mobilenet_ext
