// Front functions of the batch-norm ops on vectors alone.
#pragma once

#include <tuple>

#include "bindings/checks.h"
#include "kernels/batch_norm.h"

namespace mobilenet_ext {

template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_affine(const Tensor& mean, const Tensor& var,
                                                             const OptionalTensor& weight,
                                                             const OptionalTensor& bias, double eps,
                                                             int64_t count) {
  const char* op = "batch_norm_affine";
  check_first_vector(op, "mean", mean);
  const auto vector = [&](const char* name, const Tensor& t) {
    return check_vector_like(op, name, t, "mean", mean);
  };
  if (count < 0 || count == 1) {
    fail(op, "count must be 0 (no unbiased_var) or at least 2, got ", count);
  }
  const Tensor m = vector("mean", mean), v = vector("var", var);
  OptionalTensor w, b;
  if (weight) w.emplace(vector("weight", *weight));
  if (bias) b.emplace(vector("bias", *bias));
  const int64_t channels = mean.size(0);
  const Tensor scale = empty_vector(mean, mean.scalar_type(), channels);
  const Tensor shift = empty_vector(mean, mean.scalar_type(), channels);
  const Tensor invstd = empty_vector(mean, mean.scalar_type(), channels);
  const Tensor unbiased_var = empty_vector(mean, mean.scalar_type(), count ? channels : 0);
  BatchNormAffineArgs args = {};
  args.channels = channels;
  args.dtype = dtype_of(mean);
  args.mean = m.const_data_ptr();
  args.var = v.const_data_ptr();
  args.weight = data_of(w);
  args.bias = data_of(b);
  args.eps = eps;
  args.unbias = count ? static_cast<double>(count) / static_cast<double>(count - 1) : 0.0;
  args.scale = scale.mutable_data_ptr();
  args.shift = shift.mutable_data_ptr();
  args.invstd = invstd.mutable_data_ptr();
  args.unbiased_var = count ? unbiased_var.mutable_data_ptr() : nullptr;
  Device::run(args, mean);
  return {scale, shift, invstd, unbiased_var};
}

template <typename Device>
std::tuple<Tensor, Tensor, Tensor> batch_norm_gradient_map(const Tensor& grad_sum,
                                                           const Tensor& grad_dot,
                                                           const Tensor& scale, const Tensor& mean,
                                                           const Tensor& invstd, int64_t count) {
  const char* op = "batch_norm_gradient_map";
  check_first_vector(op, "grad_sum", grad_sum);
  const auto vector = [&](const char* name, const Tensor& t) {
    return check_vector_like(op, name, t, "grad_sum", grad_sum);
  };
  if (count < 0) fail(op, "count must be at least 0, got ", count);
  const Tensor sum = vector("grad_sum", grad_sum), dot = vector("grad_dot", grad_dot);
  const Tensor s = vector("scale", scale), m = vector("mean", mean), i = vector("invstd", invstd);
  const int64_t channels = grad_sum.size(0);
  const Tensor grad_weight = empty_vector(grad_sum, grad_sum.scalar_type(), channels);
  const Tensor raw_scale = empty_vector(grad_sum, grad_sum.scalar_type(), channels);
  const Tensor raw_shift = empty_vector(grad_sum, grad_sum.scalar_type(), channels);
  BatchNormGradientMapArgs args = {};
  args.channels = channels;
  args.dtype = dtype_of(grad_sum);
  args.grad_sum = sum.const_data_ptr();
  args.grad_dot = dot.const_data_ptr();
  args.scale = s.const_data_ptr();
  args.mean = m.const_data_ptr();
  args.invstd = i.const_data_ptr();
  args.count = static_cast<double>(count);
  args.grad_weight = grad_weight.mutable_data_ptr();
  args.raw_scale = raw_scale.mutable_data_ptr();
  args.raw_shift = raw_shift.mutable_data_ptr();
  Device::run(args, grad_sum);
  return {grad_weight, raw_scale, raw_shift};
}

}  // namespace mobilenet_ext
