// The statistics that a convolution counts of its raw output as it stores it.
#pragma once

#include "bindings/tensor.h"

namespace mobilenet_ext {

// Mean and variance, [C'] each, or [0] where they were not asked for.
struct ConvMoments {
  bool wanted;
  Tensor mean, var;

  ConvMoments(const Tensor& input, int64_t channels, bool statistics)
      : wanted(statistics),
        mean(empty_vector(input, accumulator_type(input), statistics ? channels : 0)),
        var(empty_vector(input, accumulator_type(input), statistics ? channels : 0)) {}

  // Lets the kernel write what was asked for.
  template <typename Args>
  void put_into(Args& args) const {
    args.mean = wanted ? mean.mutable_data_ptr() : nullptr;
    args.var = wanted ? var.mutable_data_ptr() : nullptr;
  }
};

}  // namespace mobilenet_ext
