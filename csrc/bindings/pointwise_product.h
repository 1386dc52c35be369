// The pointwise convolution of a block, forward and backward: an op of ours where the device has
// kernels for it, else a matrix product of its library. That neither normalises on load nor counts
// on store, so the normalised map is written for it, in the forward and again in the backward.
#pragma once

#include <tuple>

#include "bindings/batch_norm.h"
#include "bindings/pointwise_conv.h"

namespace mobilenet_ext {

// `t` seen with other sizes and strides.
template <int64_t kDims>
Tensor reinterpret(const Tensor& t, const std::array<int64_t, kDims>& sizes,
                   const std::array<int64_t, kDims>& strides) {
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(t.get(), kDims, sizes.data(), strides.data(), 0, &handle));
  return Tensor(handle);
}

// Into a tensor of its own, as autocast would cast what the plain product takes.
inline Tensor product(const Tensor& left, const Tensor& right) {
  const int64_t sizes[] = {left.size(0), right.size(1)}, strides[] = {right.size(1), 1};
  const Tensor output = empty_strided(left, left.scalar_type(), 2, sizes, strides);
  std::array<StableIValue, 3> stack = {torch::stable::detail::from(left),
                                       torch::stable::detail::from(right),
                                       torch::stable::detail::from(output)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor transposed(const Tensor& t) {
  return reinterpret<2>(t, {t.size(1), t.size(0)}, {t.stride(1), t.stride(0)});
}

// A map [N, C, H, W] as [pixels, C].
inline Tensor matrix_of_map(const Tensor& map) {
  const MapSize s = size_of(map);
  return reinterpret<2>(to_layout(map, Layout::kNhwc), {s.n * s.h * s.w, s.c}, {s.c, 1});
}

// [pixels, C] as a map of the batch, height, width and memory format of `like`.
inline Tensor map_of_matrix(const Tensor& matrix, const Tensor& like) {
  const MapSize s = size_of(like);
  const int64_t c = matrix.size(1);
  const Tensor map = reinterpret<4>(matrix, {s.n, c, s.h, s.w}, {s.h * s.w * c, 1, s.w * c, c});
  return to_format(map, memory_format_of(like));
}

// [C', C, 1, 1] as [C', C].
inline Tensor matrix_of_weight(const Tensor& weight) {
  return reinterpret<2>(weight, {weight.size(0), weight.size(1)},
                        {weight.stride(0), weight.stride(1)});
}

// What follows the depthwise convolution in a block: `scale` and `shift`, then the activation.
struct BlockPrologue {
  const Tensor &scale, &shift;
  int64_t activation;

  template <typename Device>
  Tensor apply(const Tensor& raw) const {
    return scale_shift_act<Device>(raw, scale, shift, activation);
  }
};

// Output, mean and variance, the latter [0] without `statistics`.
template <typename Device>
std::tuple<Tensor, Tensor, Tensor> pointwise_of_block(const Tensor& raw, const Tensor& weight,
                                                      const BlockPrologue& prologue,
                                                      bool statistics) {
  if constexpr (Device::kHasPointwise) {
    const OptionalTensor none;
    return pointwise_conv<Device>(raw, weight, prologue.scale, prologue.shift, prologue.activation,
                                  none, none, 0, statistics);
  } else {
    check_pointwise("separable_convs", raw, weight);
    const Tensor z = prologue.apply<Device>(raw);
    const Tensor output =
        map_of_matrix(product(matrix_of_map(z), transposed(matrix_of_weight(weight))), raw);
    if (!statistics) {
      const Tensor empty = empty_vector(raw, accumulator_type(raw), 0);
      return {output, empty, empty};
    }
    const auto [mean, var] = batch_norm_statistics<Device>(output);
    return {output, mean, var};
  }
}

// How the gradient of a raw output follows from that of the BatchNorm after it; no `output`: it is
// given as it is.
struct BlockGradient {
  Tensor grad;
  OptionalTensor output, scale, raw_scale, raw_shift;

  template <typename Device>
  Tensor of_raw() const {
    if (!output) return grad;
    return scale_shift_act_backward<Device>(grad, *output, std::nullopt, std::nullopt, 0, *scale,
                                            raw_scale, raw_shift);
  }
};

// What a pointwise backward is asked for; `mean` [C]: the sums of BatchNorm's backward with it.
struct BlockNeeds {
  OptionalTensor mean;
  bool grad_input, grad_weight;
};

// Gradients of the normalised input and of the weight, and the two sums: [0] what was not needed.
// Without kernels of ours the first has still to go through the activation's gradient.
template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> pointwise_of_block_backward(
    const BlockGradient& gradient, const Tensor& raw, const Tensor& weight,
    const BlockPrologue& prologue, const BlockNeeds& needs) {
  if constexpr (Device::kHasPointwise) {
    return pointwise_conv_backward<Device>(
        gradient.grad, gradient.output, std::nullopt, std::nullopt, 0, gradient.scale,
        gradient.raw_scale, gradient.raw_shift, raw, weight, prologue.scale, prologue.shift,
        needs.mean, prologue.activation, needs.grad_input, needs.grad_weight);
  } else {
    const char* op = "separable_convs_backward";
    const int64_t filters = check_pointwise(op, raw, weight).out_channels;
    check_map_like(op, "grad_output", gradient.grad,
                   {raw.size(0), filters, raw.size(2), raw.size(3)}, raw);
    const Tensor dy = matrix_of_map(gradient.of_raw<Device>());
    OptionalTensor grad_input, grad_weight;
    if (needs.grad_weight) {
      const Tensor z = matrix_of_map(prologue.apply<Device>(raw));
      const int64_t channels = raw.size(1);
      grad_weight = reinterpret<4>(product(transposed(dy), z), {filters, channels, 1, 1},
                                   {channels, 1, 1, 1});
    }
    if (needs.grad_input) {
      grad_input = map_of_matrix(product(dy, matrix_of_weight(weight)), raw);
    }
    const auto or_empty = [&](const OptionalTensor& t) {
      return t ? *t : empty_vector(raw, raw.scalar_type(), 0);
    };
    if (!needs.mean) {
      const Tensor empty = empty_vector(raw, accumulator_type(raw), 0);
      return {or_empty(grad_input), or_empty(grad_weight), empty, empty};
    }
    const auto [sum, dot] = scale_shift_act_backward_reduce<Device>(
        *grad_input, raw, prologue.scale, prologue.shift, prologue.activation, *needs.mean);
    return {*grad_input, or_empty(grad_weight), sum, dot};
  }
}

}  // namespace mobilenet_ext
