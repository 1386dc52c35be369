// The depthwise convolution's arithmetic on staged rows (rows.inl.h), for any kernel: an output row
// from the taps that meet it, and the sums of the taps' gradients. Where it is 3 x 3, and that is
// faster, depthwise_rows.inl.h takes the place of the first.
#pragma once

#include "kernels/cpu/rows.inl.h"

namespace mobilenet_ext::cpu {
namespace {

// The taps that meet in one output pixel: for each, its first input pixel and its weights (or, as
// W = A, the sums of their gradients).
template <typename A, typename W = const A>
struct Taps {
  const A** input;
  W** weight;
  int64_t count;

  Taps(int64_t most, Arena& arena)
      : input(arena.take<const A*>(most)), weight(arena.take<W*>(most)), count(0) {}
  void add(const A* from, W* by) {
    input[count] = from;
    weight[count] = by;
    ++count;
  }
};

// Taps held in registers; 0 stands for any number, read from memory.
template <int kValue>
struct TapsConstant {
  static constexpr int value = kValue;
};

template <typename F>
inline void dispatch_taps(int64_t count, F f) {
  switch (count) {
    case 9: return f(TapsConstant<9>{});  // 3 x 3
    case 6: return f(TapsConstant<6>{});  // at an edge
    case 4: return f(TapsConstant<4>{});  // in a corner; its backward at stride 2: 4, 2, 2 or 1
    case 3: return f(TapsConstant<3>{});
    case 2: return f(TapsConstant<2>{});
    case 1: return f(TapsConstant<1>{});
    default: return f(TapsConstant<0>{});
  }
}

template <int kTaps, typename A>
inline void correlate_taps(const Taps<A>& taps, int64_t channels, int64_t step, Row<A> to) {
  const int64_t count = kTaps ? kTaps : taps.count;
  for (int64_t c = 0; c < channels; c += kLanes<A>) {
    Vec<A> weight[kTaps ? kTaps : 1];
    const A* input[kTaps ? kTaps : 1];
    for (int t = 0; t < kTaps; ++t) {
      weight[t] = load(taps.weight[t] + c, AllLanes{});
      input[t] = taps.input[t] + c;
    }
    for (int64_t p = 0; p < to.pixels; ++p) {
      Vec<A> sum{};
      for (int64_t t = 0; t < count; ++t) {
        const Vec<A> w = kTaps ? weight[kTaps ? t : 0] : load(taps.weight[t] + c, AllLanes{});
        const A* const from = kTaps ? input[kTaps ? t : 0] : taps.input[t] + c;
        sum += w * load(from + p * step, AllLanes{});
      }
      store(to.data + p * to.stride + c, sum, AllLanes{});
    }
  }
}

// to[p] = sum over taps of weight * input[p * step]
template <typename A>
inline void correlate(const Taps<A>& taps, int64_t channels, int64_t step, Row<A> to) {
  dispatch_taps(taps.count, [&](auto held) {
    correlate_taps<decltype(held)::value>(taps, channels, step, to);
  });
}

template <int kHeld, typename A>
inline void accumulate_held(const Taps<A, A>& taps, int64_t channels, int64_t step,
                            Row<const A> grad) {
  for (int64_t first = 0; first < taps.count; first += kHeld) {
    for (int64_t c = 0; c < channels; c += kLanes<A>) {
      Vec<A> sum[kHeld] = {};
      const A* input[kHeld];
      for (int t = 0; t < kHeld; ++t) input[t] = taps.input[first + t] + c;
      for (int64_t p = 0; p < grad.pixels; ++p) {
        const Vec<A> g = load(grad.data + p * grad.stride + c, AllLanes{});
        for (int t = 0; t < kHeld; ++t) sum[t] += g * load(input[t] + p * step, AllLanes{});
      }
      for (int t = 0; t < kHeld; ++t) {
        A* const total = taps.weight[first + t] + c;
        store(total, load(total, AllLanes{}) + sum[t], AllLanes{});
      }
    }
  }
}

// taps.weight[t] += sum over pixels of grad[p] * input[t][p * step]
template <typename A>
inline void accumulate_taps(const Taps<A, A>& taps, int64_t channels, int64_t step,
                            Row<const A> grad) {
  dispatch_taps(taps.count, [&](auto held) {
    constexpr int kHeld = decltype(held)::value;
    accumulate_held<kHeld ? kHeld : 1>(taps, channels, step, grad);
  });
}

}  // namespace
}  // namespace mobilenet_ext::cpu
