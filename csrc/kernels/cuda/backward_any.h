// The backward depthwise convolution of any kernel, stride and dilation, NHWC. Two kernels: one
// gathers the gradient of each input from the outputs that its value went into; the other goes
// through the outputs, a few taps at a time, and adds up what each tap of the weight has to do with
// them.
#pragma once

#include "kernels/cuda/backward_params.h"

namespace mobilenet_ext::cuda {

// The gradient of raw outputs, computed on load.
template <typename T, int kLanes>
class GradientLoader {
 public:
  using A = Accumulator<T>;

  __device__ GradientLoader(const BackwardParams<A>& params, int64_t channel)
      : params_(params), channel_(channel) {
    gradient_.load(params.args.epilogue, params.args.gradient_map, channel);
  }

  // Of an output pixel.
  __device__ void operator()(int64_t pixel, A (&dy)[kLanes]) const {
    const DepthwiseConvBackwardArgs& args = params_.args;
    const int64_t at = pixel * args.shape.channels + channel_;
    decode_pack(load<Pack<T, kLanes>>(static_cast<const T*>(args.grad_output) + at), dy);
    if (!args.output) return;
    A raw[kLanes];
    decode_pack(load<Pack<T, kLanes>>(static_cast<const T*>(args.output) + at), raw);
    gradient_(dy, raw, params_.epilogue, args.gradient_map.raw_scale != nullptr);
  }

 private:
  const BackwardParams<A>& params_;
  int64_t channel_;
  RawGradient<A, kLanes> gradient_;
};

// The output row (or column) that an input row reaches through tap 0, 1, ...: `at` where nothing
// rests, none otherwise. Counted on, as divisions would cost more than all the rest.
struct ReachedOutput {
  int64_t at, rest;

  __device__ ReachedOutput(int64_t padded, int64_t stride)
      : at(padded / stride), rest(padded - at * stride) {}

  __device__ void next_tap(int64_t stride, int64_t step, int64_t step_rest) {
    at -= step;
    rest -= step_rest;
    if (rest >= 0) return;
    rest += stride;
    --at;
  }
  __device__ bool inside(int64_t size) const { return rest == 0 && at >= 0 && at < size; }
};

template <typename T, int kLanesT>
class AnyGradInput {
 public:
  using StorageT = T;
  using A = Accumulator<T>;
  static constexpr int kLanes = kLanesT;
  static constexpr int kSums = 2;  // grad_sum and grad_dot
  using Slots = TotalSlots<A, kLanes, kSums>;

  __device__ AnyGradInput(const BackwardParams<A>& params, int64_t channel)
      : params_(params),
        args_(params.args),
        channel_(channel),
        step_(args_.shape.dilation / args_.shape.stride),
        step_rest_(args_.shape.dilation % args_.shape.stride),
        gradient_(params, channel) {
    prologue_.load(args_.prologue, channel);
    load_vector_or(A{0}, args_.input_mean, channel, mean_);
  }

  __device__ void run(const Strip& strip, Slots& slots) const {
    const ConvShape& s = args_.shape;
    A sums[kSums][kLanes] = {};
    for (int i = 0; i < strip.rows; ++i) {
      const int64_t row = strip.row + i;
      A grad[kLanes] = {};
      gather(strip.image, row, strip.column, grad);
      const int64_t pixel = (strip.image * s.in_height + row) * s.in_width + strip.column;
      put(grad, pixel * s.channels + channel_, sums);
    }
    for (int i = 0; i < kSums; ++i) slots.add(i, sums[i]);
  }

 private:
  __device__ void gather(int64_t image, int64_t row, int64_t column, A (&grad)[kLanes]) const {
    const ConvShape& s = args_.shape;
    ReachedOutput y(row + s.pad_top, s.stride);
    const ReachedOutput first(column + s.pad_left, s.stride);
    for (int64_t tap_y = 0; tap_y < s.kernel; ++tap_y, y.next_tap(s.stride, step_, step_rest_)) {
      if (!y.inside(s.out_height)) continue;
      const int64_t pixels = (image * s.out_height + y.at) * s.out_width;
      ReachedOutput x = first;
      for (int64_t tap_x = 0; tap_x < s.kernel; ++tap_x, x.next_tap(s.stride, step_, step_rest_)) {
        if (!x.inside(s.out_width)) continue;
        A dy[kLanes], weight[kLanes];
        gradient_(pixels + x.at, dy);
        load_weight<T>(args_, channel_, tap_y * s.kernel + tap_x, weight);
        for (int v = 0; v < kLanes; ++v) grad[v] += weight[v] * dy[v];
      }
    }
  }

  // Stores the gradient of an input pixel behind the prologue's activation, and adds up the stored.
  __device__ void put(A (&grad)[kLanes], int64_t at, A (&sums)[kSums][kLanes]) const {
    A x[kLanes];
    decode_pack(load<Pack<T, kLanes>>(static_cast<const T*>(args_.input) + at), x);
    Pack<T, kLanes> pack;
    for (int v = 0; v < kLanes; ++v) {
      pack.at[v] = encode<T>(params_.prologue.gradient(grad[v], prologue_(v, x[v])));
    }
    store(static_cast<T*>(args_.grad_input) + at, pack);
    decode_pack(pack, grad);
    for (int v = 0; v < kLanes; ++v) {
      sums[0][v] += grad[v];
      sums[1][v] += grad[v] * (x[v] - mean_[v]);
    }
  }

  const BackwardParams<A>& params_;
  const DepthwiseConvBackwardArgs& args_;
  int64_t channel_, step_, step_rest_;  // of the outputs reached, from tap to tap
  GradientLoader<T, kLanes> gradient_;
  Affine<A, kLanes> prologue_;
  A mean_[kLanes];
};

// The gradients of kSums taps, from tap `first_tap` on.
template <typename T, int kLanesT>
class AnyGradWeight {
 public:
  using StorageT = T;
  using A = Accumulator<T>;
  static constexpr int kLanes = kLanesT;
  static constexpr int kSums = 8;
  using Slots = TotalSlots<A, kLanes, kSums>;

  __device__ AnyGradWeight(const BackwardParams<A>& params, int64_t channel)
      : params_(params), args_(params.args), channel_(channel), gradient_(params, channel) {
    prologue_.load(args_.prologue, channel);
  }

  __device__ void run(const Strip& strip, int64_t first_tap, Slots& slots) const {
    const ConvShape& s = args_.shape;
    A sums[kSums][kLanes] = {};
    for (int i = 0; i < strip.rows; ++i) {
      const int64_t row = strip.row + i;
      A dy[kLanes];
      gradient_((strip.image * s.out_height + row) * s.out_width + strip.column, dy);
      int64_t tap_y = first_tap / s.kernel, tap_x = first_tap % s.kernel;
#pragma unroll
      for (int t = 0; t < kSums; ++t) {
        const int64_t y = row * s.stride - s.pad_top + tap_y * s.dilation;
        const int64_t x = strip.column * s.stride - s.pad_left + tap_x * s.dilation;
        if (tap_y < s.kernel) add_pixel(strip.image, y, x, dy, sums[t]);
        if (++tap_x < s.kernel) continue;
        tap_x = 0;
        ++tap_y;
      }
    }
    for (int t = 0; t < kSums; ++t) slots.add(t, sums[t]);
  }

 private:
  __device__ void add_pixel(int64_t image, int64_t y, int64_t x, const A (&dy)[kLanes],
                            A (&sum)[kLanes]) const {
    const ConvShape& s = args_.shape;
    if (y < 0 || y >= s.in_height || x < 0 || x >= s.in_width) return;
    const int64_t at = ((image * s.in_height + y) * s.in_width + x) * s.channels + channel_;
    A z[kLanes];
    decode_pack(load<Pack<T, kLanes>>(static_cast<const T*>(args_.input) + at), z);
    for (int v = 0; v < kLanes; ++v) {
      sum[v] += params_.prologue.activate(prologue_(v, z[v])) * dy[v];
    }
  }

  const BackwardParams<A>& params_;
  const DepthwiseConvBackwardArgs& args_;
  int64_t channel_;
  GradientLoader<T, kLanes> gradient_;
  Affine<A, kLanes> prologue_;
};

}  // namespace mobilenet_ext::cuda
