// Runs a kernel table's depthwise convolution, forward and backward, against loops in double.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels/cpu/kernels.h"

namespace mobilenet_ext::cpu {

using Values = std::vector<float>;

inline Values random_values(int64_t count) {
  Values values(count);
  for (float& v : values) v = static_cast<float>(std::rand() % 2001 - 1000) / 250;
  return values;
}

// Float and double may disagree on which side of a kink a value lies; none shall lie on one.
inline void keep_off_kinks(Values& input, Values& scale, const Values& shift) {
  for (size_t i = 0; i < input.size(); ++i) {
    const size_t c = i % scale.size();
    if (std::fabs(scale[c]) < 0.1f) scale[c] = 1;
    const auto pre = [&] { return double(input[i]) * scale[c] + shift[c]; };
    while (std::fabs(pre()) < 1e-3 || std::fabs(pre() - 6) < 1e-3) input[i] += 0.1f;
  }
}

// Runs all phases, splitting each phase's items over `parts` uneven parts with their own scratch.
template <typename Args>
void run_op(const Op<Args>& op, Args args, int parts) {
  const auto aligned = [](int64_t bytes) {
    void* memory = std::aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment);
    return std::unique_ptr<void, void (*)(void*)>(memory, std::free);
  };
  const auto workspace = aligned(op.workspace_bytes(args));
  args.workspace = workspace.get();
  for (const Phase<Args>& phase : op.phases) {
    if (!phase.run) continue;
    const int64_t items = phase.items(args);
    for (int part = parts; part-- > 0;) {
      const auto scratch = aligned(op.scratch_bytes(args));
      phase.run(args, items * part / parts, items * (part + 1) / parts, scratch.get());
    }
  }
}

// One convolution with a prologue, its data, and what the loops in double make of it.
struct ConvCheck {
  ConvShape s;
  Values input, weight, scale, shift, grad;

  explicit ConvCheck(const ConvShape& shape) : s(shape) {
    const int64_t extent = kernel_extent(s);
    s.out_height = conv_output_size(s.in_height + s.pad_top + s.pad_bottom, extent, s.stride);
    s.out_width = conv_output_size(s.in_width + s.pad_left + s.pad_right, extent, s.stride);
    input = random_values(s.batch * s.in_height * s.in_width * s.channels);
    weight = random_values(s.channels * s.kernel * s.kernel);
    scale = random_values(s.channels);
    shift = random_values(s.channels);
    grad = random_values(s.batch * s.out_height * s.out_width * s.channels);
    keep_off_kinks(input, scale, shift);
  }

  double pre(int64_t at, int64_t c) const { return double(input[at]) * scale[c] + shift[c]; }

  // Calls f(output index, input index, weight index, c) for every tap inside the image.
  template <typename F>
  void for_each_tap(F f) const {
    for (int64_t n = 0; n < s.batch; ++n)
      for (int64_t y = 0; y < s.out_height; ++y)
        for (int64_t x = 0; x < s.out_width; ++x)
          for (int64_t t = 0; t < s.kernel * s.kernel; ++t) {
            const int64_t iy = y * s.stride - s.pad_top + t / s.kernel * s.dilation;
            const int64_t ix = x * s.stride - s.pad_left + t % s.kernel * s.dilation;
            if (iy < 0 || iy >= s.in_height || ix < 0 || ix >= s.in_width) continue;
            for (int64_t c = 0; c < s.channels; ++c) {
              f(((n * s.out_height + y) * s.out_width + x) * s.channels + c,
                ((n * s.in_height + iy) * s.in_width + ix) * s.channels + c,
                c * s.kernel * s.kernel + t, c);
            }
          }
  }

  static int compare(const char* what, const std::vector<double>& expected, const Values& got) {
    double scale = 1, error = 0;
    for (double e : expected) scale = std::fmax(scale, std::fabs(e));
    for (size_t i = 0; i < expected.size(); ++i) {
      const double difference = std::fabs(expected[i] - double(got[i]));
      error = difference <= error ? error : difference;  // NaN stays
    }
    if (error <= 2e-5 * scale) return 0;
    std::printf("FAILED %s: error %g at scale %g\n", what, error, scale);
    return 1;
  }

  int check_forward(const KernelTable& table, int parts) const {
    std::vector<double> output(grad.size(), 0.0), mean(s.channels, 0.0), var(s.channels, 0.0);
    for_each_tap([&](int64_t o, int64_t i, int64_t w, int64_t c) {
      output[o] += std::fmin(6.0, std::fmax(0.0, pre(i, c))) * weight[w];
    });
    const double count = double(grad.size()) / s.channels;
    for (size_t o = 0; o < output.size(); ++o) mean[o % s.channels] += output[o] / count;
    for (size_t o = 0; o < output.size(); ++o) {
      var[o % s.channels] += std::pow(output[o] - mean[o % s.channels], 2) / count;
    }
    Values got(grad.size(), -77), got_mean(s.channels), got_var(s.channels);
    DepthwiseConvArgs args = {};
    args.shape = s;
    args.input = input.data();
    args.weight = weight.data();
    args.weight_channel_stride = s.kernel * s.kernel;
    args.weight_tap_stride = 1;
    args.prologue = {scale.data(), shift.data(), Activation::kRelu6};
    args.output = got.data();
    args.mean = got_mean.data();
    args.var = got_var.data();
    run_op(table.depthwise_conv, args, parts);
    return compare("output", output, got) + compare("mean", mean, got_mean) +
           compare("var", var, got_var);
  }

  int check_backward(const KernelTable& table, int parts) const {
    std::vector<double> grad_input(input.size(), 0.0), grad_weight(weight.size(), 0.0),
        sum(s.channels, 0.0);
    for_each_tap([&](int64_t o, int64_t i, int64_t w, int64_t c) {
      const double y = pre(i, c);
      if (y > 0 && y < 6) grad_input[i] += double(grad[o]) * weight[w];
      grad_weight[w] += std::fmin(6.0, std::fmax(0.0, y)) * grad[o];
    });
    for (size_t i = 0; i < grad_input.size(); ++i) sum[i % s.channels] += grad_input[i];
    Values got_input(input.size(), -77), got_weight(weight.size(), -77), got_sum(s.channels);
    Values got_dot(s.channels), zero(s.channels, 0.0f);
    DepthwiseConvBackwardArgs args = {};
    args.shape = s;
    args.grad_output = grad.data();
    args.input = input.data();
    args.weight = weight.data();
    args.weight_channel_stride = s.kernel * s.kernel;
    args.weight_tap_stride = 1;
    args.prologue = {scale.data(), shift.data(), Activation::kRelu6};
    args.input_mean = zero.data();
    args.grad_input = got_input.data();
    args.grad_weight = got_weight.data();
    args.grad_sum = got_sum.data();
    args.grad_dot = got_dot.data();
    run_op(table.depthwise_conv_backward, args, parts);
    return compare("grad_input", grad_input, got_input) +
           compare("grad_weight", grad_weight, got_weight) + compare("grad_sum", sum, got_sum);
  }
};

// Shapes: N, C, H, W, 0, 0, K, stride, dilation, then left, right, top, bottom.
inline int check_table(const KernelTable& table) {
  const ConvShape shapes[] = {
      {2, 17, 7, 9, 0, 0, 3, 1, 1, 1, 1, 1, 1},    {1, 8, 1, 1, 0, 0, 3, 1, 1, 1, 1, 1, 1},
      {3, 33, 8, 6, 0, 0, 3, 2, 1, 0, 1, 0, 1},    {1, 16, 7, 7, 0, 0, 3, 2, 1, 1, 1, 1, 1},
      {2, 5, 6, 11, 0, 0, 5, 1, 1, 2, 2, 2, 2},    {1, 40, 9, 9, 0, 0, 3, 1, 2, 2, 2, 2, 2},
      {1, 3, 10, 4, 0, 0, 7, 3, 1, 3, 2, 1, 3},    {2, 96, 40, 33, 0, 0, 3, 1, 1, 1, 1, 1, 1},
      {1, 160, 41, 30, 0, 0, 3, 2, 1, 0, 1, 0, 1}, {1, 9, 5, 5, 0, 0, 1, 2, 1, 0, 0, 0, 0},
      {2, 24, 4, 4, 0, 0, 2, 2, 1, 0, 0, 0, 0},    {1, 70, 3, 2, 0, 0, 5, 2, 2, 4, 4, 4, 4},
  };
  int failures = 0;
  for (const ConvShape& shape : shapes) {
    const ConvCheck check(shape);
    for (const int parts : {1, 3}) {
      failures += check.check_forward(table, parts) + check.check_backward(table, parts);
    }
  }
  std::printf("%s: %d failures\n", table.name, failures);
  return failures;
}

}  // namespace mobilenet_ext::cpu
