// Front functions of a whole block: two convolutions with a BatchNorm before each. They call those
// of the ops that a block consists of, without returning to Python in between, where at 32 x 32
// pixels every call costs as much as its arithmetic. What the vectors mean: mobilenet_ext/block.py.
#pragma once

#include <tuple>

#include "bindings/batch_norm.h"
#include "bindings/batch_norm_vectors.h"
#include "bindings/depthwise_conv.h"
#include "bindings/pointwise_conv.h"

namespace mobilenet_ext {

// Values of each channel.
inline int64_t count_of(const Tensor& map) { return map.size(0) * map.size(2) * map.size(3); }

// How many values of each channel a batch's statistics are of; 0: there are no such statistics.
inline int64_t batch_count(const char* op, const char* name, const Tensor& map, bool of_batch) {
  const int64_t count = count_of(map);
  if (of_batch && count < 2) {
    fail(op, name, " must have at least 2 values per channel, got ", shape_text(map));
  }
  return of_batch ? count : 0;
}

// A BatchNorm's vectors [C] as its backward needs them; `of_batch`: its statistics are the batch's.
struct AppliedBatchNorm {
  const Tensor &scale, &shift, &mean, &invstd;
  int64_t activation;
  bool of_batch;
};

// Gradients of a BatchNorm's parameters, and the terms that its statistics send to its input.
struct BatchNormGradients {
  Tensor weight, bias;
  OptionalTensor raw_scale, raw_shift;
};

// Of the sums that a convolution's backward leaves; where they were not needed, there is nothing.
template <typename Device>
BatchNormGradients batch_norm_gradients(const Tensor& grad_sum, const Tensor& grad_dot,
                                        const Tensor& raw, const AppliedBatchNorm& bn,
                                        bool needed) {
  if (!needed) return {grad_dot, grad_sum, std::nullopt, std::nullopt};
  auto [weight, raw_scale, raw_shift] = batch_norm_gradient_map<Device>(
      grad_sum, grad_dot, bn.scale, bn.mean, bn.invstd, count_of(raw));
  if (!bn.of_batch) return {weight, grad_sum, std::nullopt, std::nullopt};
  return {weight, grad_sum, raw_scale, raw_shift};
}

// The gradient of raw from that of bn's output, in the memory of the latter.
template <typename Device>
Tensor through_batch_norm(const char* op, const Tensor& dy, const Tensor& raw,
                          const AppliedBatchNorm& bn, const BatchNormGradients& of) {
  const GradientVectors gradient =
      check_gradient_vectors(op, bn.scale, of.raw_scale, of.raw_shift, raw);
  return map_gradient<Device>(op, dy, raw, {{}, {}, Activation::kNone}, gradient, true);
}

inline OptionalTensor optional(const Tensor& t, bool given) {
  return given ? OptionalTensor(t) : std::nullopt;
}

// Without running statistics `bn` takes those of the raw depthwise output. The vectors are scale,
// shift, mean, invstd and unbiased variance of bn, then all but the mean of input_bn; what running
// statistics leave open is [0].
template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
           Tensor, Tensor>
separable_conv(const Tensor& input, const Tensor& input_mean, const Tensor& input_var,
               const OptionalTensor& input_bn_weight, const OptionalTensor& input_bn_bias,
               double input_eps, int64_t input_activation, bool input_of_batch,
               const Tensor& depthwise_weight, const OptionalTensor& running_mean,
               const OptionalTensor& running_var, const OptionalTensor& bn_weight,
               const OptionalTensor& bn_bias, double eps, int64_t activation,
               const Tensor& pointwise_weight, bool statistics, int64_t stride, int64_t pad_left,
               int64_t pad_right, int64_t pad_top, int64_t pad_bottom, int64_t dilation) {
  const char* op = "separable_conv";
  check_map(op, "input", input);
  check_together(op, "running_mean and running_var", !!running_mean, !!running_var);
  const bool of_batch = !running_mean;
  const auto [input_scale, input_shift, input_invstd, input_unbiased_var] =
      batch_norm_affine<Device>(input_mean, input_var, input_bn_weight, input_bn_bias, input_eps,
                                batch_count(op, "input", input, input_of_batch));
  const auto [raw, raw_mean, raw_var] = depthwise_conv<Device>(
      input, depthwise_weight, input_scale, input_shift, input_activation, std::nullopt,
      std::nullopt, 0, of_batch, stride, pad_left, pad_right, pad_top, pad_bottom, dilation);
  const Tensor& mean = of_batch ? raw_mean : *running_mean;
  const Tensor& var = of_batch ? raw_var : *running_var;
  const auto [scale, shift, invstd, unbiased_var] =
      batch_norm_affine<Device>(mean, var, bn_weight, bn_bias, eps, batch_count(op, "the depthwise output", raw, of_batch));
  const auto [output, output_mean, output_var] = pointwise_conv<Device>(
      raw, pointwise_weight, scale, shift, activation, std::nullopt, std::nullopt, 0, statistics);
  return {output,
          output_mean,
          output_var,
          raw,
          scale,
          shift,
          raw_mean,
          invstd,
          unbiased_var,
          input_scale,
          input_shift,
          input_invstd,
          input_unbiased_var};
}

// Gradients of the input, of both weights, of bn's weight and bias, and of input_bn's.
template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> separable_conv_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& raw,
    const Tensor& depthwise_weight, const Tensor& pointwise_weight, const Tensor& scale,
    const Tensor& shift, const Tensor& mean, const Tensor& invstd, int64_t activation,
    bool of_batch, const Tensor& input_scale, const Tensor& input_shift, const Tensor& input_mean,
    const Tensor& input_invstd, int64_t input_activation, bool input_of_batch, int64_t stride,
    int64_t pad_left, int64_t pad_right, int64_t pad_top, int64_t pad_bottom, int64_t dilation,
    bool need_input, bool need_depthwise_weight, bool need_pointwise_weight, bool need_bn,
    bool need_input_bn) {
  const char* op = "separable_conv_backward";
  check_map(op, "input", input);
  const AppliedBatchNorm bn{scale, shift, mean, invstd, activation, of_batch};
  const AppliedBatchNorm input_bn{input_scale,  input_shift,      input_mean,
                                  input_invstd, input_activation, input_of_batch};
  const OptionalTensor no_map;
  const bool need_map = need_input || need_input_bn;
  const bool need_raw = need_map || need_depthwise_weight;
  const bool need_sums = need_bn || (of_batch && need_raw);

  const auto [dy, grad_pointwise_weight, sum, dot] = pointwise_conv_backward<Device>(
      grad_output, no_map, no_map, no_map, 0, no_map, no_map, no_map, raw, pointwise_weight, scale,
      shift, optional(mean, need_sums), activation, need_raw || need_sums, need_pointwise_weight);
  const BatchNormGradients of_bn = batch_norm_gradients<Device>(sum, dot, raw, bn, need_sums);

  const auto [input_dy, grad_depthwise_weight, input_sum, input_dot] =
      depthwise_conv_backward<Device>(need_raw ? dy : raw, raw, no_map, no_map, 0, scale,
                                      of_bn.raw_scale, of_bn.raw_shift, input, depthwise_weight,
                                      input_scale, input_shift, optional(input_mean, need_map),
                                      input_activation, stride, pad_left, pad_right, pad_top,
                                      pad_bottom, dilation, need_map, need_depthwise_weight);
  const BatchNormGradients of_input_bn =
      batch_norm_gradients<Device>(input_sum, input_dot, input, input_bn, need_map);
  return {need_input ? through_batch_norm<Device>(op, input_dy, input, input_bn, of_input_bn)
                     : empty_vector(input, input.scalar_type(), 0),
          grad_depthwise_weight,
          grad_pointwise_weight,
          of_bn.weight,
          of_bn.bias,
          of_input_bn.weight,
          of_input_bn.bias};
}

}  // namespace mobilenet_ext
