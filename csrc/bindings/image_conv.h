// Front functions of a dense convolution of few channels, a network's first: check, allocate, fill
// the struct of the pointwise convolution, run on Device. The image gets no gradient.
#pragma once

#include <tuple>

#include "bindings/checks.h"
#include "bindings/conv_gradients.h"
#include "bindings/conv_moments.h"
#include "kernels/pointwise_conv.h"

namespace mobilenet_ext {

// The geometry, once the weight is known to fit.
inline ConvShape check_image_conv(const char* op, const Tensor& input, const Tensor& weight,
                                  const ConvOptions& options) {
  check_map(op, "input", input);
  check_same_kind(op, "weight", weight, input);
  const bool fits = weight.dim() == 4 && weight.size(0) >= 1 && weight.size(1) == input.size(1) &&
                    weight.size(2) == weight.size(3);
  if (!fits) {
    fail(op, "weight must be [F, C, K, K] = [F, ", input.size(1), ", K, K], got ",
         shape_text(weight));
  }
  return conv_shape(op, input, weight.size(2), options);
}

inline PointwiseShape shape_of_patches(const ConvShape& s, int64_t filters) {
  return {s.batch * s.out_height * s.out_width, s.kernel * s.kernel * s.channels, filters};
}

template <typename Device>
std::tuple<Tensor, Tensor, Tensor> image_conv(const Tensor& input, const Tensor& weight,
                                              bool statistics, int64_t stride, int64_t pad_left,
                                              int64_t pad_right, int64_t pad_top,
                                              int64_t pad_bottom) {
  const ConvOptions options{stride, pad_left, pad_right, pad_top, pad_bottom, /*dilation=*/1};
  const ConvShape s = check_image_conv("image_conv", input, weight, options);
  const int64_t filters = weight.size(0);
  const Tensor output =
      empty_map(input, {s.batch, filters, s.out_height, s.out_width}, Layout::kNhwc);
  const ConvMoments moments(input, filters, statistics);

  const Tensor x = to_layout(input, Layout::kNhwc), w = to_layout(weight, Layout::kNhwc);
  PointwiseConvArgs args = {};
  args.shape = shape_of_patches(s, filters);
  args.dtype = dtype_of(input);
  args.input = x.const_data_ptr();
  args.patches = s;
  args.weight = {w.const_data_ptr(), args.shape.in_channels, 1};
  args.output = output.mutable_data_ptr();
  moments.put_into(args);
  Device::run(args, input);
  return {to_format(output, memory_format_of(input)), moments.mean, moments.var};
}

// The weight's gradient. `output` and the terms take grad_output through the BatchNorm behind it.
template <typename Device>
Tensor image_conv_backward(const Tensor& grad_output, const OptionalTensor& output,
                           const OptionalTensor& grad_scale, const OptionalTensor& raw_scale,
                           const OptionalTensor& raw_shift, const Tensor& input,
                           const Tensor& weight, int64_t stride, int64_t pad_left,
                           int64_t pad_right, int64_t pad_top, int64_t pad_bottom) {
  const char* op = "image_conv_backward";
  const ConvOptions options{stride, pad_left, pad_right, pad_top, pad_bottom, /*dilation=*/1};
  const ConvShape s = check_image_conv(op, input, weight, options);
  const MapSize out_size = {s.batch, weight.size(0), s.out_height, s.out_width};
  check_map_like(op, "grad_output", grad_output, out_size, input);
  if (output) check_map_like(op, "output", *output, out_size, input);
  check_together(op, "output", "grad_scale", !!output, !!grad_scale);
  const GradientVectors gradient =
      check_gradient_vectors(op, grad_scale, raw_scale, raw_shift, grad_output);
  if (!output && raw_scale) fail(op, "output must be given with a raw_scale, got None");

  const Tensor grad_weight = empty_map(input, size_of(weight), Layout::kNhwc);
  const Tensor grad = to_layout(grad_output, Layout::kNhwc), x = to_layout(input, Layout::kNhwc);
  OptionalTensor raw;
  if (output) raw.emplace(to_layout(*output, Layout::kNhwc));
  PointwiseConvBackwardArgs args = {};
  args.shape = shape_of_patches(s, weight.size(0));
  args.dtype = dtype_of(input);
  args.grad_output = grad.const_data_ptr();
  args.output = data_of(raw);
  args.gradient_map = gradient.map();
  args.input = x.const_data_ptr();
  args.patches = s;
  args.grad_weight = grad_weight.mutable_data_ptr();
  Device::run(args, input);
  return to_format(grad_weight, MemoryFormat::Contiguous);
}

}  // namespace mobilenet_ext
