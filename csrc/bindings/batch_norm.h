// Front functions of the batch-norm ops: check, allocate, fill the struct, run on Device.
#pragma once

#include <tuple>

#include "bindings/checks.h"
#include "kernels/batch_norm.h"

namespace mobilenet_ext {

// The arguments that all these ops share: the input as a [pixels, C] matrix.
template <typename Args>
Args matrix_args(const Tensor& input, const Tensor& nhwc) {
  const MapSize size = size_of(input);
  Args args = {};
  args.pixels = size.n * size.h * size.w;
  args.channels = size.c;
  args.dtype = dtype_of(input);
  args.input = nhwc.const_data_ptr();
  return args;
}

template <typename Device>
std::tuple<Tensor, Tensor> batch_norm_statistics(const Tensor& input) {
  const char* op = "batch_norm_statistics";
  check_map(op, "input", input);
  const MapSize size = size_of(input);
  const Tensor x = to_nhwc(input);
  const Tensor mean = empty_vector(input, accumulator_type(input), size.c);
  const Tensor var = empty_vector(input, accumulator_type(input), size.c);
  auto args = matrix_args<BatchNormStatisticsArgs>(input, x);
  args.mean = mean.mutable_data_ptr();
  args.var = var.mutable_data_ptr();
  Device::run(args, input);
  return {mean, var};
}

template <typename Device>
Tensor scale_shift_act(const Tensor& input, const Tensor& scale, const Tensor& shift,
                       int64_t activation) {
  const char* op = "scale_shift_act";
  check_map(op, "input", input);
  const MapVectors vectors = check_map_vectors(op, "", scale, shift, activation, input);
  const MapSize size = size_of(input);
  const Tensor x = to_nhwc(input);
  const Tensor output = empty_nhwc(input, size);
  auto args = matrix_args<ScaleShiftActArgs>(input, x);
  args.map = vectors.map();
  args.output = output.mutable_data_ptr();
  Device::run(args, input);
  return to_format(output, memory_format_of(input));
}

template <typename Device>
std::tuple<Tensor, Tensor> scale_shift_act_backward_reduce(const Tensor& grad_output,
                                                           const Tensor& input, const Tensor& scale,
                                                           const Tensor& shift, int64_t activation,
                                                           const Tensor& mean) {
  const char* op = "scale_shift_act_backward_reduce";
  check_map(op, "input", input);
  const MapSize size = size_of(input);
  check_map_like(op, "grad_output", grad_output, size, input);
  const MapVectors vectors = check_map_vectors(op, "", scale, shift, activation, input);
  const Tensor center = check_vector(op, "mean", mean, input);
  const Tensor grad = to_nhwc(grad_output);
  const Tensor x = to_nhwc(input);
  const Tensor grad_sum = empty_vector(input, accumulator_type(input), size.c);
  const Tensor grad_dot = empty_vector(input, accumulator_type(input), size.c);
  auto args = matrix_args<ScaleShiftActBackwardReduceArgs>(input, x);
  args.grad_output = grad.const_data_ptr();
  args.map = vectors.map();
  args.mean = center.const_data_ptr();
  args.grad_sum = grad_sum.mutable_data_ptr();
  args.grad_dot = grad_dot.mutable_data_ptr();
  Device::run(args, input);
  return {grad_sum, grad_dot};
}

template <typename Device>
Tensor scale_shift_act_backward(const Tensor& grad_output, const Tensor& input,
                                const OptionalTensor& scale, const OptionalTensor& shift,
                                int64_t activation, const Tensor& grad_scale,
                                const OptionalTensor& raw_scale, const OptionalTensor& raw_shift) {
  const char* op = "scale_shift_act_backward";
  check_map(op, "input", input);
  const MapSize size = size_of(input);
  check_map_like(op, "grad_output", grad_output, size, input);
  const MapVectors vectors = check_map_vectors(op, "", scale, shift, activation, input);
  const GradientVectors gradient =
      check_gradient_vectors(op, grad_scale, raw_scale, raw_shift, input);
  const Tensor grad = to_nhwc(grad_output);
  const Tensor x = to_nhwc(input);
  const Tensor grad_input = empty_nhwc(input, size);
  auto args = matrix_args<ScaleShiftActBackwardArgs>(input, x);
  args.grad_output = grad.const_data_ptr();
  args.map = vectors.map();
  args.gradient_map = gradient.map();
  args.grad_input = grad_input.mutable_data_ptr();
  Device::run(args, input);
  return to_format(grad_input, memory_format_of(input));
}

}  // namespace mobilenet_ext
