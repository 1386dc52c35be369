// The backward depthwise convolution of any kernel, stride and dilation. Two kernels: one
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
      : params_(params), channel_(channel * params.grad.channel) {
    gradient_.load(params.args.epilogue, params.args.gradient_map, channel);
  }

  // Of an output pixel, so many elements from the first.
  __device__ void operator()(int64_t pixel, A (&dy)[kLanes]) const {
    const DepthwiseConvBackwardArgs& args = params_.args;
    const int64_t at = pixel + channel_;
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

// What the two have in common: V, the vectors that maps are moved by, and what a thread knows of
// its channels.
template <typename V, int kSumsT>
class AnyGradient {
 public:
  using T = typename V::T;
  using A = Accumulator<T>;
  static constexpr int kLanes = V::kLanes, kSums = kSumsT;
  using Slots = TotalSlots<A, kLanes, kSums>;

 protected:
  __device__ AnyGradient(const BackwardParams<A>& params, int64_t channel)
      : params_(params), args_(params.args), channel_(channel), gradient_(params, channel) {
    prologue_.load(args_.prologue, channel);
  }

  // Elements to an input pixel.
  __device__ int64_t input_at(int64_t image, int64_t y, int64_t x) const {
    return params_.input.at(image, y, x) + channel_ * params_.input.channel;
  }
  __device__ void load_input(int64_t at, A (&to)[kLanes]) const {
    decode_pack(load<Vector<V>>(static_cast<const T*>(args_.input) + at), to);
  }

  const BackwardParams<A>& params_;
  const DepthwiseConvBackwardArgs& args_;
  int64_t channel_;
  GradientLoader<T, kLanes> gradient_;
  Affine<A, kLanes> prologue_;
};

// The gradient of the input; grad_sum and grad_dot.
template <typename V>
class AnyGradInput : public AnyGradient<V, 2> {
 public:
  using Base = AnyGradient<V, 2>;
  using Base::kLanes, Base::kSums;
  using typename Base::A, typename Base::Slots, typename Base::T;

  __device__ AnyGradInput(const BackwardParams<A>& params, int64_t channel)
      : Base(params, channel),
        step_(args_.shape.dilation / args_.shape.stride),
        step_rest_(args_.shape.dilation % args_.shape.stride) {
    load_vector_or(A{0}, args_.input_mean, channel, mean_);
  }

  __device__ void run(const Strip& strip, Slots& slots) const {
    A sums[kSums][kLanes] = {};
    for (int i = 0; i < strip.rows; ++i) {
      const int64_t row = strip.row + i;
      A grad[kLanes] = {};
      gather(strip.image, row, strip.column, grad);
      put(grad, this->input_at(strip.image, row, strip.column), sums);
    }
    for (int i = 0; i < kSums; ++i) slots.add(i, sums[i]);
  }

 private:
  using Base::args_, Base::channel_, Base::gradient_, Base::params_, Base::prologue_;

  __device__ void gather(int64_t image, int64_t row, int64_t column, A (&grad)[kLanes]) const {
    const ConvShape& s = args_.shape;
    ReachedOutput y(row + s.pad_top, s.stride);
    const ReachedOutput first(column + s.pad_left, s.stride);
    for (int64_t tap_y = 0; tap_y < s.kernel; ++tap_y, y.next_tap(s.stride, step_, step_rest_)) {
      if (!y.inside(s.out_height)) continue;
      ReachedOutput x = first;
      for (int64_t tap_x = 0; tap_x < s.kernel; ++tap_x, x.next_tap(s.stride, step_, step_rest_)) {
        if (!x.inside(s.out_width)) continue;
        A dy[kLanes], weight[kLanes];
        gradient_(params_.grad.at(image, y.at, x.at), dy);
        load_weight<T>(args_, channel_, tap_y * s.kernel + tap_x, weight);
        for (int v = 0; v < kLanes; ++v) grad[v] += weight[v] * dy[v];
      }
    }
  }

  // Stores the gradient of an input pixel behind the prologue's activation, and adds up the stored.
  __device__ void put(A (&grad)[kLanes], int64_t at, A (&sums)[kSums][kLanes]) const {
    A x[kLanes];
    this->load_input(at, x);
    for (int v = 0; v < kLanes; ++v) {
      grad[v] = params_.prologue.gradient(grad[v], prologue_(v, x[v]));
    }
    const Vector<V> pack = encode_pack<T>(grad);
    store(static_cast<T*>(args_.grad_input) + at, pack);
    decode_pack(pack, grad);
    for (int v = 0; v < kLanes; ++v) {
      sums[0][v] += grad[v];
      sums[1][v] += grad[v] * (x[v] - mean_[v]);
    }
  }

  int64_t step_, step_rest_;  // of the outputs reached, from tap to tap
  A mean_[kLanes];
};

// The gradients of kSums taps, from tap `first_tap` on.
template <typename V>
class AnyGradWeight : public AnyGradient<V, 8> {
 public:
  using Base = AnyGradient<V, 8>;
  using Base::kLanes, Base::kSums;
  using typename Base::A, typename Base::Slots;

  __device__ AnyGradWeight(const BackwardParams<A>& params, int64_t channel)
      : Base(params, channel) {}

  __device__ void run(const Strip& strip, int64_t first_tap, Slots& slots) const {
    const ConvShape& s = args_.shape;
    A sums[kSums][kLanes] = {};
    for (int i = 0; i < strip.rows; ++i) {
      const int64_t row = strip.row + i;
      A dy[kLanes];
      gradient_(params_.grad.at(strip.image, row, strip.column), dy);
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
  using Base::args_, Base::gradient_, Base::params_, Base::prologue_;

  __device__ void add_pixel(int64_t image, int64_t y, int64_t x, const A (&dy)[kLanes],
                            A (&sum)[kLanes]) const {
    const ConvShape& s = args_.shape;
    if (y < 0 || y >= s.in_height || x < 0 || x >= s.in_width) return;
    A z[kLanes];
    this->load_input(this->input_at(image, y, x), z);
    for (int v = 0; v < kLanes; ++v) {
      sum[v] += params_.prologue.activate(prologue_(v, z[v])) * dy[v];
    }
  }
};

}  // namespace mobilenet_ext::cuda
