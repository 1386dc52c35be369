// Front functions of the depthwise convolution: check, allocate, fill the struct, run on Device.
#pragma once

#include <tuple>

#include "bindings/checks.h"

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
  const ConvShape s = check_conv(op, input, weight,
                                 {stride, pad_left, pad_right, pad_top, pad_bottom, dilation});
  check_together(op, "input_scale and input_shift", !!input_scale, !!input_shift);
  check_together(op, "output_scale and output_shift", !!output_scale, !!output_shift);
  if (statistics && output_scale) {
    fail(op, "statistics must be False with an output_scale, got True");
  }
  const OptionalTensor vectors[] = {check_vector(op, "input_scale", input_scale, input),
                                    check_vector(op, "input_shift", input_shift, input),
                                    check_vector(op, "output_scale", output_scale, input),
                                    check_vector(op, "output_shift", output_shift, input)};
  const Activation activations[] = {
      check_activation(op, "input_activation", input_activation, !!input_scale),
      check_activation(op, "output_activation", output_activation, !!output_scale)};

  const Tensor x = to_nhwc(input);
  const WeightView w = view_weight(weight);
  const Tensor output = empty_nhwc(input, {s.batch, s.channels, s.out_height, s.out_width});
  const int64_t moments = statistics ? s.channels : 0;
  const Tensor mean = empty_vector(input, accumulator_type(input), moments);
  const Tensor var = empty_vector(input, accumulator_type(input), moments);
  DepthwiseConvArgs args = {};
  args.shape = s;
  args.dtype = dtype_of(input);
  args.input = x.const_data_ptr();
  args.weight = w.tensor.const_data_ptr();
  args.weight_channel_stride = w.channel_stride;
  args.weight_tap_stride = w.tap_stride;
  args.prologue = {data_of(vectors[0]), data_of(vectors[1]), activations[0]};
  args.epilogue = {data_of(vectors[2]), data_of(vectors[3]), activations[1]};
  args.output = output.mutable_data_ptr();
  args.mean = statistics ? mean.mutable_data_ptr() : nullptr;
  args.var = statistics ? var.mutable_data_ptr() : nullptr;
  Device::run(args, input);
  return {to_format(output, memory_format_of(input)), mean, var};
}

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
  const ConvShape s = check_conv(op, input, weight,
                                 {stride, pad_left, pad_right, pad_top, pad_bottom, dilation});
  const MapSize out_size = {s.batch, s.channels, s.out_height, s.out_width};
  check_map_like(op, "grad_output", grad_output, out_size, input);
  if (output) check_map_like(op, "output", *output, out_size, input);
  check_together(op, "output and grad_scale", !!output, !!grad_scale);
  check_together(op, "output_scale and output_shift", !!output_scale, !!output_shift);
  check_together(op, "raw_scale and raw_shift", !!raw_scale, !!raw_shift);
  check_together(op, "input_scale and input_shift", !!input_scale, !!input_shift);
  if (!output && (output_scale || raw_scale)) {
    fail(op, "output must be given with an output_scale or a raw_scale, got None");
  }
  if (input_mean && (!input_scale || !need_grad_input)) {
    fail(op, "input_mean must be None without an input_scale and need_grad_input, got a tensor");
  }
  const OptionalTensor vectors[] = {check_vector(op, "output_scale", output_scale, input),
                                    check_vector(op, "output_shift", output_shift, input),
                                    check_vector(op, "grad_scale", grad_scale, input),
                                    check_vector(op, "raw_scale", raw_scale, input),
                                    check_vector(op, "raw_shift", raw_shift, input),
                                    check_vector(op, "input_scale", input_scale, input),
                                    check_vector(op, "input_shift", input_shift, input),
                                    check_vector(op, "input_mean", input_mean, input)};
  const Activation activations[] = {
      check_activation(op, "output_activation", output_activation, !!output_scale),
      check_activation(op, "input_activation", input_activation, !!input_scale)};

  const Tensor grad = to_nhwc(grad_output);
  OptionalTensor raw;
  if (output) raw.emplace(to_nhwc(*output));
  const Tensor x = to_nhwc(input);
  const WeightView w = view_weight(weight);
  const Tensor none = empty_vector(input, input.scalar_type(), 0);
  const Tensor grad_input = need_grad_input ? empty_nhwc(input, size_of(input)) : none;
  const int64_t weight_sizes[] = {s.channels, 1, s.kernel, s.kernel};
  const int64_t weight_strides[] = {s.kernel * s.kernel, s.kernel * s.kernel, s.kernel, 1};
  const Tensor grad_weight =
      need_grad_weight
          ? empty_strided(input, weight.scalar_type(), 4, weight_sizes, weight_strides)
          : empty_vector(input, weight.scalar_type(), 0);
  const int64_t sums = input_mean ? s.channels : 0;
  const Tensor grad_sum = empty_vector(input, accumulator_type(input), sums);
  const Tensor grad_dot = empty_vector(input, accumulator_type(input), sums);
  DepthwiseConvBackwardArgs args = {};
  args.shape = s;
  args.dtype = dtype_of(input);
  args.grad_output = grad.const_data_ptr();
  args.output = data_of(raw);
  args.epilogue = {data_of(vectors[0]), data_of(vectors[1]), activations[0]};
  args.gradient_map = {data_of(vectors[2]), data_of(vectors[3]), data_of(vectors[4])};
  args.input = x.const_data_ptr();
  args.weight = w.tensor.const_data_ptr();
  args.weight_channel_stride = w.channel_stride;
  args.weight_tap_stride = w.tap_stride;
  args.prologue = {data_of(vectors[5]), data_of(vectors[6]), activations[1]};
  args.input_mean = data_of(vectors[7]);
  args.grad_input = need_grad_input ? grad_input.mutable_data_ptr() : nullptr;
  args.grad_weight = need_grad_weight ? grad_weight.mutable_data_ptr() : nullptr;
  args.grad_sum = input_mean ? grad_sum.mutable_data_ptr() : nullptr;
  args.grad_dot = input_mean ? grad_dot.mutable_data_ptr() : nullptr;
  if (need_grad_input || need_grad_weight) Device::run(args, input);
  return {need_grad_input ? to_format(grad_input, memory_format_of(input)) : grad_input,
          grad_weight, grad_sum, grad_dot};
}

}  // namespace mobilenet_ext
