// Front functions of the pointwise convolution: check, allocate, fill the struct, run on Device.
#pragma once

#include <tuple>

#include "bindings/checks.h"
#include "bindings/conv_gradients.h"
#include "bindings/conv_moments.h"
#include "kernels/pointwise_conv.h"

namespace mobilenet_ext {

inline PointwiseShape check_pointwise(const char* op, const Tensor& input, const Tensor& weight) {
  check_map(op, "input", input);
  check_same_kind(op, "weight", weight, input);
  const int64_t channels = input.size(1);
  const bool fits = weight.dim() == 4 && weight.size(0) >= 1 && weight.size(1) == channels &&
                    weight.size(2) == 1 && weight.size(3) == 1;
  if (!fits) {
    fail(op, "weight must be [C', C, 1, 1] = [C', ", channels, ", 1, 1], got ", shape_text(weight));
  }
  return {input.size(0) * input.size(2) * input.size(3), channels, weight.size(0)};
}

inline PointwiseWeight pointwise_weight(const Tensor& weight) {
  return {weight.const_data_ptr(), weight.stride(0), weight.stride(1)};
}

template <typename Device>
std::tuple<Tensor, Tensor, Tensor> pointwise_conv(
    const Tensor& input, const Tensor& weight, const OptionalTensor& input_scale,
    const OptionalTensor& input_shift, int64_t input_activation, const OptionalTensor& output_scale,
    const OptionalTensor& output_shift, int64_t output_activation, bool statistics) {
  const char* op = "pointwise_conv";
  const PointwiseShape s = check_pointwise(op, input, weight);
  const Tensor output = empty_map(
      input, {input.size(0), s.out_channels, input.size(2), input.size(3)}, Layout::kNhwc);
  const MapVectors prologue =
      check_map_vectors(op, "input_", input_scale, input_shift, input_activation, input);
  const MapVectors epilogue =
      check_map_vectors(op, "output_", output_scale, output_shift, output_activation, output);
  if (statistics && output_scale) {
    fail(op, "statistics must be False with an output_scale, got True");
  }

  const Tensor x = to_layout(input, Layout::kNhwc);
  const ConvMoments moments(input, s.out_channels, statistics);
  PointwiseConvArgs args = {};
  args.shape = s;
  args.dtype = dtype_of(input);
  args.input = x.const_data_ptr();
  args.weight = pointwise_weight(weight);
  args.prologue = prologue.map();
  args.epilogue = epilogue.map();
  args.output = output.mutable_data_ptr();
  moments.put_into(args);
  Device::run(args, input);
  return {to_format(output, memory_format_of(input)), moments.mean, moments.var};
}

template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> pointwise_conv_backward(
    const Tensor& grad_output, const OptionalTensor& output, const OptionalTensor& output_scale,
    const OptionalTensor& output_shift, int64_t output_activation, const OptionalTensor& grad_scale,
    const OptionalTensor& raw_scale, const OptionalTensor& raw_shift, const Tensor& input,
    const Tensor& weight, const OptionalTensor& input_scale, const OptionalTensor& input_shift,
    const OptionalTensor& input_mean, int64_t input_activation, bool need_grad_input,
    bool need_grad_weight) {
  const char* op = "pointwise_conv_backward";
  const PointwiseShape s = check_pointwise(op, input, weight);
  const MapSize out_size = {input.size(0), s.out_channels, input.size(2), input.size(3)};
  check_map_like(op, "grad_output", grad_output, out_size, input);
  if (output) check_map_like(op, "output", *output, out_size, input);
  check_together(op, "output", "grad_scale", !!output, !!grad_scale);
  const MapVectors epilogue =
      check_map_vectors(op, "output_", output_scale, output_shift, output_activation, grad_output);
  const GradientVectors gradient =
      check_gradient_vectors(op, grad_scale, raw_scale, raw_shift, grad_output);
  if (!output && (output_scale || raw_scale)) {
    fail(op, "output must be given with an output_scale or a raw_scale, got None");
  }
  const MapVectors prologue =
      check_map_vectors(op, "input_", input_scale, input_shift, input_activation, input);
  if (input_mean && (!input_scale || !need_grad_input)) {
    fail(op, "input_mean must be None without an input_scale and need_grad_input, got a tensor");
  }
  const OptionalTensor mean = check_vector(op, "input_mean", input_mean, input);

  const ConvGradients to(input, weight, Layout::kNhwc, need_grad_input, need_grad_weight,
                         !!input_mean);
  if (!need_grad_input && !need_grad_weight) return to.results(input);
  const Tensor grad = to_layout(grad_output, Layout::kNhwc);
  OptionalTensor raw;
  if (output) raw.emplace(to_layout(*output, Layout::kNhwc));
  const Tensor x = to_layout(input, Layout::kNhwc);
  PointwiseConvBackwardArgs args = {};
  args.shape = s;
  args.dtype = dtype_of(input);
  args.grad_output = grad.const_data_ptr();
  args.output = data_of(raw);
  args.epilogue = epilogue.map();
  args.gradient_map = gradient.map();
  args.input = x.const_data_ptr();
  args.weight = pointwise_weight(weight);
  args.prologue = prologue.map();
  args.input_mean = data_of(mean);
  to.put_into(args);
  Device::run(args, input);
  return to.results(input);
}

}  // namespace mobilenet_ext
