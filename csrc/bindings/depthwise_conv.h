// Front functions of the depthwise convolution: check, allocate, fill the struct, run on Device.
#pragma once

#include <tuple>

#include "bindings/checks.h"
#include "bindings/conv_gradients.h"
#include "bindings/conv_moments.h"

namespace mobilenet_ext {

// The weight's [C, K * K] by strides, without a copy where K rows lie K taps apart.
struct WeightView {
  Tensor tensor;
  int64_t channel_stride, tap_stride;
};

inline WeightView view_weight(const Tensor& weight) {
  const int64_t kernel = weight.size(3);
  if (kernel == 1 || weight.stride(2) == kernel * weight.stride(3)) {
    return {weight, weight.stride(0), weight.stride(3)};
  }
  return {torch::stable::contiguous(weight), kernel * kernel, 1};
}

template <typename Device>
std::tuple<Tensor, Tensor, Tensor> depthwise_conv(
    const Tensor& input, const Tensor& weight, const OptionalTensor& input_scale,
    const OptionalTensor& input_shift, int64_t input_activation, const OptionalTensor& output_scale,
    const OptionalTensor& output_shift, int64_t output_activation, bool statistics, int64_t stride,
    int64_t pad_left, int64_t pad_right, int64_t pad_top, int64_t pad_bottom, int64_t dilation) {
  const char* op = "depthwise_conv";
  const ConvOptions options = {stride, pad_left, pad_right, pad_top, pad_bottom, dilation};
  const ConvShape s = check_conv(op, input, weight, options);
  const MapVectors prologue =
      check_map_vectors(op, "input_", input_scale, input_shift, input_activation, input);
  const MapVectors epilogue =
      check_map_vectors(op, "output_", output_scale, output_shift, output_activation, input);
  if (statistics && output_scale) {
    fail(op, "statistics must be False with an output_scale, got True");
  }

  const Layout layout = layout_for<Device>(input);
  const Tensor x = to_layout(input, layout);
  const WeightView w = view_weight(weight);
  const Tensor output = empty_map(input, {s.batch, s.channels, s.out_height, s.out_width}, layout);
  const ConvMoments moments(input, s.channels, statistics);
  DepthwiseConvArgs args = {};
  args.shape = s;
  args.dtype = dtype_of(input);
  args.layout = layout;
  args.input = x.const_data_ptr();
  args.weight = w.tensor.const_data_ptr();
  args.weight_channel_stride = w.channel_stride;
  args.weight_tap_stride = w.tap_stride;
  args.prologue = prologue.map();
  args.epilogue = epilogue.map();
  args.output = output.mutable_data_ptr();
  moments.put_into(args);
  Device::run(args, input);
  return {to_format(output, memory_format_of(input)), moments.mean, moments.var};
}

// All maps in the input's layout: those in another are copied.
template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> depthwise_conv_backward(
    const Tensor& grad_output, const OptionalTensor& output, const OptionalTensor& output_scale,
    const OptionalTensor& output_shift, int64_t output_activation, const OptionalTensor& grad_scale,
    const OptionalTensor& raw_scale, const OptionalTensor& raw_shift, const Tensor& input,
    const Tensor& weight, const OptionalTensor& input_scale, const OptionalTensor& input_shift,
    const OptionalTensor& input_mean, int64_t input_activation, int64_t stride, int64_t pad_left,
    int64_t pad_right, int64_t pad_top, int64_t pad_bottom, int64_t dilation, bool need_grad_input,
    bool need_grad_weight) {
  const char* op = "depthwise_conv_backward";
  const ConvOptions options = {stride, pad_left, pad_right, pad_top, pad_bottom, dilation};
  const ConvShape s = check_conv(op, input, weight, options);
  const MapSize out_size = {s.batch, s.channels, s.out_height, s.out_width};
  check_map_like(op, "grad_output", grad_output, out_size, input);
  if (output) check_map_like(op, "output", *output, out_size, input);
  check_together(op, "output", "grad_scale", !!output, !!grad_scale);
  const MapVectors epilogue =
      check_map_vectors(op, "output_", output_scale, output_shift, output_activation, input);
  const GradientVectors gradient =
      check_gradient_vectors(op, grad_scale, raw_scale, raw_shift, input);
  if (!output && (output_scale || raw_scale)) {
    fail(op, "output must be given with an output_scale or a raw_scale, got None");
  }
  const MapVectors prologue =
      check_map_vectors(op, "input_", input_scale, input_shift, input_activation, input);
  if (input_mean && (!input_scale || !need_grad_input)) {
    fail(op, "input_mean must be None without an input_scale and need_grad_input, got a tensor");
  }
  const OptionalTensor mean = check_vector(op, "input_mean", input_mean, input);

  const Layout layout = layout_for<Device>(input);
  const ConvGradients to(input, weight, layout, need_grad_input, need_grad_weight, !!input_mean);
  if (!need_grad_input && !need_grad_weight) return to.results(input);
  const Tensor grad = to_layout(grad_output, layout);
  OptionalTensor raw;
  if (output) raw.emplace(to_layout(*output, layout));
  const Tensor x = to_layout(input, layout);
  const WeightView w = view_weight(weight);
  DepthwiseConvBackwardArgs args = {};
  args.shape = s;
  args.dtype = dtype_of(input);
  args.layout = layout;
  args.grad_output = grad.const_data_ptr();
  args.output = data_of(raw);
  args.epilogue = epilogue.map();
  args.gradient_map = gradient.map();
  args.input = x.const_data_ptr();
  args.weight = w.tensor.const_data_ptr();
  args.weight_channel_stride = w.channel_stride;
  args.weight_tap_stride = w.tap_stride;
  args.prologue = prologue.map();
  args.input_mean = data_of(mean);
  to.put_into(args);
  Device::run(args, input);
  return to.results(input);
}

}  // namespace mobilenet_ext
