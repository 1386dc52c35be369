// Front function of image_patches: check, allocate, fill the struct, run on Device.
#pragma once

#include "bindings/checks.h"
#include "kernels/image_patches.h"

namespace mobilenet_ext {

template <typename Device>
Tensor image_patches(const Tensor& input, int64_t kernel, int64_t stride, int64_t pad_left,
                     int64_t pad_right, int64_t pad_top, int64_t pad_bottom) {
  const char* op = "image_patches";
  check_map(op, "input", input);
  ImagePatchesArgs args = {};
  args.shape = conv_shape(op, input, kernel,
                          {stride, pad_left, pad_right, pad_top, pad_bottom, /*dilation=*/1});
  const int64_t row = (args.shape.in_width + pad_left + pad_right) * args.shape.channels;
  if (row > kMostPatchValues / kernel) {
    fail(op, "as many padded rows as the kernel has must have at most ", kMostPatchValues,
         " values, got ", kernel, " of ", row);
  }
  args.columns = patch_columns(args.shape);
  args.dtype = dtype_of(input);
  const int64_t rows = args.shape.batch * args.shape.out_height * args.shape.out_width;
  const int64_t sizes[] = {rows, args.columns}, strides[] = {args.columns, 1};
  const Tensor output = empty_strided(input, input.scalar_type(), 2, sizes, strides);
  const Tensor x = to_layout(input, Layout::kNhwc);
  args.input = x.const_data_ptr();
  args.output = output.mutable_data_ptr();
  Device::run(args, input);
  return output;
}

}  // namespace mobilenet_ext
