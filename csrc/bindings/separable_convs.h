// Front functions of a run of blocks, each of two convolutions with a BatchNorm before it. They
// call those of the ops that a block consists of, without returning to Python in between: at 32 x
// 32 pixels every call from there costs as much as its arithmetic. What a block computes is in
// mobilenet_ext/reference_ops/blocks.py, line by line as here.
#pragma once

#include <tuple>
#include <vector>

#include "bindings/batch_norm.h"
#include "bindings/batch_norm_vectors.h"
#include "bindings/depthwise_conv.h"
#include "bindings/image_conv.h"
#include "bindings/pointwise_product.h"

namespace mobilenet_ext {

using Tensors = std::vector<Tensor>;
using OptionalTensors = std::vector<OptionalTensor>;
using Integers = std::vector<int64_t>;

// What the lists hold of each block, first of input_bn, then of bn:
constexpr size_t kBlockTensors = 10;  // both weights; weight, bias, running mean and variance
constexpr size_t kBlockEpsilons = 2;
constexpr size_t kBlockOptions = 8;  // BlockOptions
constexpr size_t kBlockMaps = 2;     // input and raw depthwise output
constexpr size_t kBlockVectors = 8;  // scale, shift, mean, invstd
constexpr size_t kBlockFlags = 6;    // BlockFlags
constexpr size_t kStemOptions = 5;   // stride and paddings

struct BlockOptions {
  int64_t stride, pad_left, pad_right, pad_top, pad_bottom, dilation, input_activation, activation;
};

inline BlockOptions block_options(const Integers& options, size_t block) {
  const int64_t* o = &options[block * kBlockOptions];
  return {o[0], o[1], o[2], o[3], o[4], o[5], o[6], o[7]};
}

inline size_t check_blocks(const char* op, const char* name, size_t length, size_t each) {
  if (length == 0 || length % each) {
    fail(op, name, " must have ", each, " entries a block, got ", length);
  }
  return length / each;
}

inline void check_length(const char* op, const char* name, size_t length, size_t expected) {
  if (length != expected) fail(op, name, " must have ", expected, " entries, got ", length);
}

inline const Tensor& check_given(const char* op, const char* name, const OptionalTensor& t) {
  if (!t) fail(op, name, " must be a tensor, got None");
  return *t;
}

// How many values a channel has.
inline int64_t count_of(const Tensor& map) { return map.size(0) * map.size(2) * map.size(3); }

// A BatchNorm [C]: parameters and running statistics, without which it takes the batch's.
struct BatchNormTensors {
  const OptionalTensor &weight, &bias, &mean, &var;
  double eps;
  bool of_batch() const { return !mean; }
};

// What is applied to a map, and invstd for the backward: [C]; unbiased_var is [0] with running
// statistics.
struct AppliedBatchNorm {
  Tensor scale, shift, invstd, unbiased_var;
};

// `mean` and `var` are the batch's.
template <typename Device>
AppliedBatchNorm apply_batch_norm(const char* op, const Tensor& raw, const BatchNormTensors& bn,
                                  const OptionalTensor& mean, const OptionalTensor& var) {
  check_together(op, "running mean", "variance", !!bn.mean, !!bn.var);
  const int64_t count = bn.of_batch() ? count_of(raw) : 0;
  if (bn.of_batch() && count < 2) {
    fail(op, "maps must have at least 2 values per channel, got ", shape_text(raw));
  }
  const Tensor& m = check_given(op, "mean", bn.of_batch() ? mean : bn.mean);
  const Tensor& v = check_given(op, "var", bn.of_batch() ? var : bn.var);
  const auto [scale, shift, invstd, unbiased_var] =
      batch_norm_affine<Device>(m, v, bn.weight, bn.bias, bn.eps, count);
  return {scale, shift, invstd, unbiased_var};
}

// Per block: output, its mean and variance, raw depthwise output, its mean, AppliedBatchNorm of
// input_bn and of bn. `mean` and `var` are the input's, `statistics` tells whether to count those
// of the last output.
template <typename Device>
Tensors separable_convs(const Tensor& input, const OptionalTensor& mean, const OptionalTensor& var,
                        const OptionalTensors& tensors, const std::vector<double>& eps,
                        const Integers& options, bool statistics) {
  const char* op = "separable_convs";
  const size_t blocks = check_blocks(op, "tensors", tensors.size(), kBlockTensors);
  check_length(op, "eps", eps.size(), blocks * kBlockEpsilons);
  check_length(op, "options", options.size(), blocks * kBlockOptions);
  check_map(op, "input", input);
  const OptionalTensor none;
  Tensors results;
  Tensor x = input;
  OptionalTensor x_mean = mean, x_var = var;
  for (size_t b = 0; b < blocks; ++b) {
    const OptionalTensor* t = &tensors[b * kBlockTensors];
    const BlockOptions o = block_options(options, b);
    const BatchNormTensors input_bn{t[2], t[3], t[4], t[5], eps[2 * b]};
    const BatchNormTensors bn{t[6], t[7], t[8], t[9], eps[2 * b + 1]};
    const bool is_last = b + 1 == blocks;
    const bool count = is_last ? statistics : !tensors[(b + 1) * kBlockTensors + 4];

    const AppliedBatchNorm before = apply_batch_norm<Device>(op, x, input_bn, x_mean, x_var);
    const auto [raw, raw_mean, raw_var] = depthwise_conv<Device>(
        x, check_given(op, "depthwise_weight", t[0]), before.scale, before.shift,
        o.input_activation, none, none, 0, bn.of_batch(), o.stride, o.pad_left, o.pad_right,
        o.pad_top, o.pad_bottom, o.dilation);
    const AppliedBatchNorm between = apply_batch_norm<Device>(op, raw, bn, raw_mean, raw_var);
    const auto [output, output_mean, output_var] = pointwise_of_block<Device>(
        raw, check_given(op, "pointwise_weight", t[1]),
        BlockPrologue{between.scale, between.shift, o.activation}, count);
    results.insert(results.end(), {output, output_mean, output_var, raw, raw_mean});
    for (const AppliedBatchNorm& a : {before, between}) {
      results.insert(results.end(), {a.scale, a.shift, a.invstd, a.unbiased_var});
    }
    x = output, x_mean = output_mean, x_var = output_var;
  }
  return results;
}

struct BlockFlags {
  bool input_of_batch, of_batch;  // whether the statistics were the batch's
  bool need_depthwise_weight, need_pointwise_weight, need_input_bn, need_bn;
  bool needs_any() const {
    return need_depthwise_weight || need_pointwise_weight || need_input_bn || need_bn;
  }
};

inline BlockFlags block_flags(const Integers& flags, size_t block) {
  const int64_t* f = &flags[block * kBlockFlags];
  return {f[0] != 0, f[1] != 0, f[2] != 0, f[3] != 0, f[4] != 0, f[5] != 0};
}

// Gradients of a BatchNorm's parameters, and the terms that its statistics send to its input.
struct BatchNormGradients {
  Tensor weight, bias;
  OptionalTensor raw_scale, raw_shift;
};

// `v`: scale, shift, mean, invstd. Sums that were not needed are [0], and so are the gradients.
template <typename Device>
BatchNormGradients batch_norm_gradients(const Tensor& grad_sum, const Tensor& grad_dot,
                                        const Tensor& raw, const Tensor* v, bool of_batch,
                                        bool needed) {
  if (!needed) return {grad_dot, grad_sum, std::nullopt, std::nullopt};
  const auto [weight, raw_scale, raw_shift] =
      batch_norm_gradient_map<Device>(grad_sum, grad_dot, v[0], v[2], v[3], count_of(raw));
  if (!of_batch) return {weight, grad_sum, std::nullopt, std::nullopt};
  return {weight, grad_sum, raw_scale, raw_shift};
}

inline OptionalTensor if_needed(const Tensor& t, bool needed) {
  return needed ? OptionalTensor(t) : std::nullopt;
}

// What separable_convs_backward returns: [0] for what is not there.
inline Tensors with_empty(const OptionalTensors& gradients, const Tensor& like) {
  Tensors results;
  results.reserve(gradients.size());
  for (size_t i = 0; i < gradients.size(); ++i) {
    const bool is_vector = i > 0 && (i - 1) % 6 >= 2;
    const ScalarType dtype = is_vector ? accumulator_type(like) : like.scalar_type();
    results.push_back(gradients[i] ? *gradients[i] : empty_vector(like, dtype, 0));
  }
  return results;
}

// Of the input, or of the weight `stem` of the convolution that made it of an image.
template <typename Device>
Tensor first_gradient(const char* op, const BlockGradient& of_output, const OptionalTensor& image,
                      const OptionalTensor& stem, const Integers& o) {
  if (!image) return of_output.of_raw<Device>();
  check_length(op, "stem_options", o.size(), kStemOptions);
  if constexpr (Device::kHasPointwise) {
    return image_conv_backward<Device>(of_output.grad, of_output.output, of_output.scale,
                                       of_output.raw_scale, of_output.raw_shift, *image, *stem,
                                       o[0], o[1], o[2], o[3], o[4]);
  } else {
    fail(op, "image must be None on this device, got a tensor");
  }
}

// Gradients of the input, or with an `image` of the stem's weight, then per block of both weights,
// and of weight and bias of input_bn and of bn. What is not needed is [0].
template <typename Device>
Tensors separable_convs_backward(const Tensor& grad_output, const Tensors& maps,
                                 const Tensors& weights, const Tensors& vectors,
                                 const Integers& options, const Integers& flags, bool need_input,
                                 const OptionalTensor& image, const OptionalTensor& stem,
                                 const Integers& stem_options) {
  const char* op = "separable_convs_backward";
  const size_t blocks = check_blocks(op, "maps", maps.size(), kBlockMaps);
  check_length(op, "weights", weights.size(), blocks * 2);
  check_length(op, "vectors", vectors.size(), blocks * kBlockVectors);
  check_length(op, "options", options.size(), blocks * kBlockOptions);
  check_length(op, "flags", flags.size(), blocks * kBlockFlags);
  check_together(op, "image", "stem", !!image, !!stem);
  const OptionalTensor none;
  size_t first = 0;  // block that needs a gradient
  while (!need_input && first + 1 < blocks && !block_flags(flags, first).needs_any()) ++first;

  OptionalTensors results(1 + 6 * blocks);
  BlockGradient of_output{grad_output, none, none, none, none};
  for (size_t b = blocks; b-- > first;) {
    const Tensor &input = maps[2 * b], &raw = maps[2 * b + 1];
    check_map(op, "maps", input);
    const Tensor *before = &vectors[b * kBlockVectors], *between = before + kBlockVectors / 2;
    const BlockOptions o = block_options(options, b);
    const BlockFlags f = block_flags(flags, b);
    const bool need_grad = b > first || need_input;
    const bool need_dx = need_grad || f.need_input_bn;
    const bool need_raw = need_dx || f.need_depthwise_weight;
    const bool need_sums = f.need_bn || (f.of_batch && need_raw);

    const BlockNeeds needs{if_needed(between[2], need_sums), need_raw || need_sums,
                           f.need_pointwise_weight};
    const auto [dy, grad_pointwise, sum, dot] = pointwise_of_block_backward<Device>(
        of_output, raw, weights[2 * b + 1], BlockPrologue{between[0], between[1], o.activation},
        needs);
    const BatchNormGradients bn =
        batch_norm_gradients<Device>(sum, dot, raw, between, f.of_batch, need_sums);
    OptionalTensor* to = &results[1 + 6 * b];
    to[1] = grad_pointwise, to[4] = bn.weight, to[5] = bn.bias;
    if (!need_raw) continue;

    // Our pointwise kernel has carried dy through the activation already.
    constexpr bool kMasked = Device::kHasPointwise;
    const auto [dx, grad_depthwise, input_sum, input_dot] = depthwise_conv_backward<Device>(
        dy, raw, if_needed(between[0], !kMasked), if_needed(between[1], !kMasked),
        kMasked ? 0 : o.activation, between[0], bn.raw_scale, bn.raw_shift, input, weights[2 * b],
        before[0], before[1], if_needed(before[2], need_dx), o.input_activation, o.stride,
        o.pad_left, o.pad_right, o.pad_top, o.pad_bottom, o.dilation, need_dx,
        f.need_depthwise_weight);
    const BatchNormGradients input_bn = batch_norm_gradients<Device>(
        input_sum, input_dot, input, before, f.input_of_batch, need_dx);
    to[0] = grad_depthwise, to[2] = input_bn.weight, to[3] = input_bn.bias;
    if (!need_grad) continue;
    of_output = {dx, input, before[0], input_bn.raw_scale, input_bn.raw_shift};
  }
  if (need_input) results[0] = first_gradient<Device>(op, of_output, image, stem, stem_options);
  return with_empty(results, grad_output);
}

}  // namespace mobilenet_ext
