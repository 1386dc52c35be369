// What the backward op of a convolution returns.
#pragma once

#include <tuple>

#include "bindings/tensor.h"

namespace mobilenet_ext {

// Allocated as far as they were asked for; what was not is [0].
class ConvGradients {
 public:
  ConvGradients(const Tensor& input, const Tensor& weight, Layout layout, bool need_grad_input,
                bool need_grad_weight, bool need_sums)
      : need_grad_input_(need_grad_input),
        need_grad_weight_(need_grad_weight),
        need_sums_(need_sums),
        grad_input_(need_grad_input ? empty_map(input, size_of(input), layout)
                                    : empty_vector(input, input.scalar_type(), 0)),
        grad_weight_(need_grad_weight ? empty_weight(weight)
                                      : empty_vector(input, input.scalar_type(), 0)),
        grad_sum_(empty_vector(input, accumulator_type(input), need_sums ? input.size(1) : 0)),
        grad_dot_(empty_vector(input, accumulator_type(input), need_sums ? input.size(1) : 0)) {}

  // Lets the kernel write what was asked for.
  template <typename Args>
  void put_into(Args& args) const {
    args.grad_input = need_grad_input_ ? grad_input_.mutable_data_ptr() : nullptr;
    args.grad_weight = need_grad_weight_ ? grad_weight_.mutable_data_ptr() : nullptr;
    args.grad_sum = need_sums_ ? grad_sum_.mutable_data_ptr() : nullptr;
    args.grad_dot = need_sums_ ? grad_dot_.mutable_data_ptr() : nullptr;
  }

  // grad_input in the memory format of `input`, grad_weight, grad_sum, grad_dot.
  std::tuple<Tensor, Tensor, Tensor, Tensor> results(const Tensor& input) const {
    const Tensor grad_input =
        need_grad_input_ ? to_format(grad_input_, memory_format_of(input)) : grad_input_;
    return {grad_input, grad_weight_, grad_sum_, grad_dot_};
  }

 private:
  // Dense, whatever the strides of `weight`.
  static Tensor empty_weight(const Tensor& weight) {
    const int64_t row = weight.size(3), taps = weight.size(2) * row;
    const int64_t sizes[] = {weight.size(0), weight.size(1), weight.size(2), row};
    const int64_t strides[] = {weight.size(1) * taps, taps, row, 1};
    return empty_strided(weight, weight.scalar_type(), 4, sizes, strides);
  }

  bool need_grad_input_, need_grad_weight_, need_sums_;
  Tensor grad_input_, grad_weight_, grad_sum_, grad_dot_;
};

}  // namespace mobilenet_ext
