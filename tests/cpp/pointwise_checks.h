// Runs a kernel table's pointwise convolution, forward and backward, against loops in double; of
// pixels and of an image's patches.
#pragma once

#include "kernel_checks.h"

namespace mobilenet_ext::cpu {

struct PointwiseCheck {
  PointwiseShape s;
  Values input, weight, scale, shift, grad;

  explicit PointwiseCheck(const PointwiseShape& shape) : s(shape) {
    input = random_values(s.pixels * s.in_channels);
    weight = random_values(s.out_channels * s.in_channels);
    scale = random_values(s.in_channels);
    shift = random_values(s.in_channels);
    grad = random_values(s.pixels * s.out_channels);
    keep_off_kinks(input, scale, shift);
  }

  double pre(int64_t p, int64_t c) const {
    return double(input[p * s.in_channels + c]) * scale[c] + shift[c];
  }
  double activated(int64_t p, int64_t c) const { return std::fmin(6.0, std::fmax(0.0, pre(p, c))); }

  // Calls f(pixel, output channel, input channel).
  template <typename F>
  void for_each_product(F f) const {
    for (int64_t p = 0; p < s.pixels; ++p)
      for (int64_t o = 0; o < s.out_channels; ++o)
        for (int64_t c = 0; c < s.in_channels; ++c) f(p, o, c);
  }

  int check_forward(const KernelTable& table, int parts) const {
    std::vector<double> output(grad.size(), 0.0), mean(s.out_channels, 0.0);
    for_each_product([&](int64_t p, int64_t o, int64_t c) {
      const double product = activated(p, c) * weight[o * s.in_channels + c];
      output[p * s.out_channels + o] += product;
      mean[o] += product / static_cast<double>(s.pixels);
    });
    Values got(output.size(), -77), got_mean(s.out_channels), got_var(s.out_channels);
    PointwiseConvArgs args = {};
    args.shape = s;
    args.input = input.data();
    args.weight = {weight.data(), s.in_channels, 1};
    args.prologue = {scale.data(), shift.data(), Activation::kRelu6};
    args.output = got.data();
    args.mean = got_mean.data();
    args.var = got_var.data();
    run_op(table.pointwise_conv, args, parts);
    return ConvCheck::compare("pointwise output", output, got) +
           ConvCheck::compare("pointwise mean", mean, got_mean);
  }

  int check_backward(const KernelTable& table, int parts) const {
    std::vector<double> grad_input(input.size(), 0.0), grad_weight(weight.size(), 0.0),
        sum(s.in_channels, 0.0);
    for_each_product([&](int64_t p, int64_t o, int64_t c) {
      const double g = grad[p * s.out_channels + o];
      grad_weight[o * s.in_channels + c] += g * activated(p, c);
      if (pre(p, c) <= 0 || pre(p, c) >= 6) return;
      grad_input[p * s.in_channels + c] += g * weight[o * s.in_channels + c];
      sum[c] += g * weight[o * s.in_channels + c];
    });
    Values got_input(input.size(), -77), got_weight(weight.size(), -77), got_sum(s.in_channels);
    Values got_dot(s.in_channels), zero(s.in_channels, 0.0f);
    PointwiseConvBackwardArgs args = {};
    args.shape = s;
    args.grad_output = grad.data();
    args.input = input.data();
    args.weight = {weight.data(), s.in_channels, 1};
    args.prologue = {scale.data(), shift.data(), Activation::kRelu6};
    args.input_mean = zero.data();
    args.grad_input = got_input.data();
    args.grad_weight = got_weight.data();
    args.grad_sum = got_sum.data();
    args.grad_dot = got_dot.data();
    run_op(table.pointwise_conv_backward, args, parts);
    return ConvCheck::compare("pointwise grad_input", grad_input, got_input) +
           ConvCheck::compare("pointwise grad_weight", grad_weight, got_weight) +
           ConvCheck::compare("pointwise grad_sum", sum, got_sum);
  }
};

// A dense convolution as a pointwise one of patches.
struct PatchesCheck {
  ConvShape s;
  PointwiseShape of_patches;
  Values image, weight, grad;

  PatchesCheck(const ConvShape& shape, int64_t filters) : s(shape) {
    s.out_height = conv_output_size(s.in_height + s.pad_top + s.pad_bottom, s.kernel, s.stride);
    s.out_width = conv_output_size(s.in_width + s.pad_left + s.pad_right, s.kernel, s.stride);
    of_patches = {s.batch * s.out_height * s.out_width, s.kernel * s.kernel * s.channels, filters};
    image = random_values(s.batch * s.in_height * s.in_width * s.channels);
    weight = random_values(filters * of_patches.in_channels);
    grad = random_values(of_patches.pixels * filters);
  }

  // 0 outside of the image.
  double at(int64_t pixel, int64_t column) const {
    const int64_t row = pixel / s.out_width, tap = column / s.channels;
    const int64_t y = row % s.out_height * s.stride - s.pad_top + tap / s.kernel;
    const int64_t x = pixel % s.out_width * s.stride - s.pad_left + tap % s.kernel;
    if (y < 0 || y >= s.in_height || x < 0 || x >= s.in_width) return 0;
    const int64_t n = row / s.out_height;
    return image[((n * s.in_height + y) * s.in_width + x) * s.channels + column % s.channels];
  }

  int check(const KernelTable& table, int parts) const {
    const PointwiseShape& p = of_patches;
    std::vector<double> output(grad.size(), 0.0), grad_weight(weight.size(), 0.0);
    for (int64_t i = 0; i < p.pixels; ++i) {
      for (int64_t o = 0; o < p.out_channels; ++o) {
        for (int64_t c = 0; c < p.in_channels; ++c) {
          output[i * p.out_channels + o] += at(i, c) * weight[o * p.in_channels + c];
          grad_weight[o * p.in_channels + c] += at(i, c) * grad[i * p.out_channels + o];
        }
      }
    }
    Values got(output.size(), -77), got_weight(weight.size(), -77);
    PointwiseConvArgs args = {};
    args.shape = p;
    args.input = image.data();
    args.patches = s;
    args.weight = {weight.data(), p.in_channels, 1};
    args.output = got.data();
    run_op(table.pointwise_conv, args, parts);
    PointwiseConvBackwardArgs backward = {};
    backward.shape = p;
    backward.grad_output = grad.data();
    backward.input = image.data();
    backward.patches = s;
    backward.grad_weight = got_weight.data();
    run_op(table.pointwise_conv_backward, backward, parts);
    return ConvCheck::compare("patches output", output, got) +
           ConvCheck::compare("patches grad_weight", grad_weight, got_weight);
  }
};

// Shapes: batch, channels, in_height, in_width, out_height, out_width (found), kernel, stride,
// dilation, paddings.
inline int check_patches(const KernelTable& table) {
  const ConvShape shapes[] = {{2, 3, 16, 13, 0, 0, 3, 2, 1, 0, 1, 0, 1},
                              {1, 1, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 0},
                              {3, 5, 4, 6, 0, 0, 5, 1, 1, 4, 3, 2, 5},
                              {2, 3, 60, 70, 0, 0, 3, 2, 1, 1, 1, 1, 1}};
  int failures = 0;
  for (const ConvShape& shape : shapes) {
    const PatchesCheck check(shape, shape.in_width + 3);
    for (const int parts : {1, 3}) failures += check.check(table, parts);
  }
  return failures;
}

// Shapes: pixels, C, C'. Less than a register tile or a panel, whole ones, and work that is split.
inline int check_pointwise(const KernelTable& table) {
  const PointwiseShape shapes[] = {{1, 8, 16},     {5, 9, 17},    {13, 1, 1},    {50, 16, 16},
                                   {49, 33, 70},   {30, 256, 96}, {20, 90, 300}, {4000, 16, 32},
                                   {700, 70, 130}, {2100, 9, 21}};
  int failures = check_patches(table);
  for (const PointwiseShape& shape : shapes) {
    const PointwiseCheck check(shape);
    for (const int parts : {1, 3}) {
      failures += check.check_forward(table, parts) + check.check_backward(table, parts);
    }
  }
  std::printf("%s, pointwise: %d failures\n", table.name, failures);
  return failures;
}

}  // namespace mobilenet_ext::cpu
