// Front functions of the batch-norm ops: check, allocate, fill the struct, run on Device.
#pragma once

#include <tuple>

#include "bindings/checks.h"
#include "kernels/batch_norm.h"

namespace mobilenet_ext {

// The arguments that all these ops share; `dense` is the input in memory of the layout.
template <typename Args>
Args map_args(const Tensor& input, const Tensor& dense, Layout layout) {
  const MapSize size = size_of(input);
  Args args = {};
  args.pixels = size.n * size.h * size.w;
  args.channels = size.c;
  args.plane = layout == Layout::kNchw ? size.h * size.w : 1;
  args.dtype = dtype_of(input);
  args.input = dense.const_data_ptr();
  return args;
}

template <typename Device>
std::tuple<Tensor, Tensor> batch_norm_statistics(const Tensor& input) {
  const char* op = "batch_norm_statistics";
  check_map(op, "input", input);
  const MapSize size = size_of(input);
  const Layout layout = layout_for<Device>(input);
  const Tensor x = to_layout(input, layout);
  const Tensor mean = empty_vector(input, accumulator_type(input), size.c);
  const Tensor var = empty_vector(input, accumulator_type(input), size.c);
  auto args = map_args<BatchNormStatisticsArgs>(input, x, layout);
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
  const Layout layout = layout_for<Device>(input);
  const Tensor x = to_layout(input, layout);
  const Tensor output = empty_map(input, size, layout);
  auto args = map_args<ScaleShiftActArgs>(input, x, layout);
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
  const Layout layout = layout_for<Device>(input);
  const Tensor grad = to_layout(grad_output, layout);
  const Tensor x = to_layout(input, layout);
  const Tensor grad_sum = empty_vector(input, accumulator_type(input), size.c);
  const Tensor grad_dot = empty_vector(input, accumulator_type(input), size.c);
  auto args = map_args<ScaleShiftActBackwardReduceArgs>(input, x, layout);
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
  const Layout layout = layout_for<Device>(input);
  const Tensor grad = to_layout(grad_output, layout);
  const Tensor x = to_layout(input, layout);
  const Tensor grad_input = empty_map(input, size, layout);
  auto args = map_args<ScaleShiftActBackwardArgs>(input, x, layout);
  args.grad_output = grad.const_data_ptr();
  args.map = vectors.map();
  args.gradient_map = gradient.map();
  args.grad_input = grad_input.mutable_data_ptr();
  Device::run(args, input);
  return to_format(grad_input, memory_format_of(input));
}

}  // namespace mobilenet_ext
