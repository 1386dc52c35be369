// The loops over one row of pixels of one block of channels: bring a row in, convolve it, take it
// out. A tensor row holds storage type T; a staged row holds accumulators A, whole vectors only,
// with zeros in the lanes past the last channel and in the pixels outside the image. So the loops
// that do the arithmetic (correlate, accumulate_taps) know nothing of types, maps or borders.
#pragma once

#include <type_traits>

#include "kernels/cpu/channel_sums.inl.h"
#include "kernels/cpu/maps.inl.h"

namespace mobilenet_ext::cpu {
namespace {

// Whether a row of elements of T may be read and written by the loops over accumulators.
template <typename T>
constexpr bool kIsPlain = std::is_same_v<T, Accumulator<T>>;

template <typename E>
struct Row {
  E* data;
  int64_t pixels;
  int64_t stride;  // elements from a pixel to the next
  E* at(int64_t pixel, int64_t channel) const { return data + pixel * stride + channel; }
};

// Per-channel values stay in registers for this many pixels, whose rows stay in the L1 cache.
constexpr int64_t kTilePixels = 4;

// Calls f(tile, c, lanes) for every tile of pixels and vector of channels.
template <typename A, typename F>
inline void for_each_tile(Range pixels, int64_t channels, F f) {
  for (int64_t p = pixels.begin; p < pixels.end; p += kTilePixels) {
    const Range tile{p, min_of(p + kTilePixels, pixels.end)};
    for_each_vector<A>(channels, [&](int64_t c, auto lanes) { f(tile, c, lanes); });
  }
}

// to = map(from); `to` is a Row, or anything else with whole vectors at(pixel, channel).
template <typename T, typename A, typename To = Row<A>>
inline void stage_row(Row<const T> from, const ChannelMap<A>& params, int64_t channels, To to) {
  dispatch_map(params, [&](auto tag) {
    for_each_tile<A>({0, from.pixels}, channels, [&](Range tile, int64_t c, auto lanes) {
      const typename decltype(tag)::type map(params, c, lanes);
      for (int64_t p = tile.begin; p < tile.end; ++p) {
        store(to.at(p, c), map(load(from.at(p, c), lanes)), AllLanes{});
      }
    });
  });
}

// to = the gradient of the raw output, from `grad` and (null if nothing needs it) `raw`.
template <typename T, typename A, typename To = Row<A>>
inline void stage_gradient_row(Row<const T> grad, const T* raw, const ChannelGradient<A>& params,
                               int64_t channels, To to) {
  dispatch_gradient(params, [&](auto tag) {
    for_each_tile<A>({0, grad.pixels}, channels, [&](Range tile, int64_t c, auto lanes) {
      const typename decltype(tag)::type raw_gradient(params, c, lanes);
      for (int64_t p = tile.begin; p < tile.end; ++p) {
        const int64_t at = p * grad.stride + c;
        const Vec<A> r = raw ? load(raw + at, lanes) : Vec<A>{};
        store(to.at(p, c), raw_gradient(load(grad.data + at, lanes), r), AllLanes{});
      }
    });
  });
}

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

// Sums of (x - shift) and (x - shift)^2 per channel. Any value of the channel will do as shift: it
// keeps the sums small where the mean is large against the deviation.
template <typename A>
struct Moments {
  A* shift;
  ChannelSums<A> sums;
};

// The moments of what a loop has in registers, a vector of channels at a time.
template <typename A>
struct VectorMoments {
  const Moments<A>& to;
  Vec<A> shift{}, sum{}, square{};

  void start(int64_t c) {
    shift = load(to.shift + c, AllLanes{});
    sum = square = Vec<A>{};
  }
  void add(Vec<A> value) {
    const Vec<A> x = value - shift;
    sum += x;
    square += x * x;
  }
  void finish(int64_t c) const { to.sums.add(c, sum, square); }
};

template <typename A>
struct NoMoments {
  void start(int64_t) {}
  void add(Vec<A>) {}
  void finish(int64_t) const {}
};

template <int kTaps, typename A, typename Counted>
inline void correlate_taps(const Taps<A>& taps, Range pixels, int64_t channels, int64_t step,
                           Row<A> to, Counted moments) {
  const int64_t count = kTaps ? kTaps : taps.count;
  for (int64_t c = 0; c < channels; c += kLanes<A>) {
    Vec<A> weight[kTaps ? kTaps : 1];
    const A* input[kTaps ? kTaps : 1];
    for (int t = 0; t < kTaps; ++t) {
      weight[t] = load(taps.weight[t] + c, AllLanes{});
      input[t] = taps.input[t] + c;
    }
    moments.start(c);
    for (int64_t p = pixels.begin; p < pixels.end; ++p) {
      Vec<A> sum{};
      for (int64_t t = 0; t < count; ++t) {
        const Vec<A> w = kTaps ? weight[kTaps ? t : 0] : load(taps.weight[t] + c, AllLanes{});
        const A* const from = kTaps ? input[kTaps ? t : 0] : taps.input[t] + c;
        sum += w * load(from + p * step, AllLanes{});
      }
      store(to.data + p * to.stride + c, sum, AllLanes{});
      moments.add(sum);
    }
    moments.finish(c);
  }
}

// to[p] = sum over taps of weight * input[p * step]
template <typename A>
inline void correlate(const Taps<A>& taps, int64_t channels, int64_t step, Row<A> to) {
  dispatch_taps(taps.count, [&](auto held) {
    correlate_taps<decltype(held)::value>(taps, {0, to.pixels}, channels, step, to, NoMoments<A>{});
  });
}

// The same, counted.
template <typename A>
inline void correlate(const Taps<A>& taps, int64_t channels, int64_t step, Row<A> to,
                      Moments<A>& moments) {
  dispatch_taps(taps.count, [&](auto held) {
    for_each_run(to.pixels, moments.sums, [&](Range run) {
      correlate_taps<decltype(held)::value>(taps, run, channels, step, to,
                                            VectorMoments<A>{moments});
    });
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

template <typename T, typename A>
inline void start_moments(const T* first_pixel, int64_t channels, Moments<A>& to) {
  for_each_vector<A>(channels, [&](int64_t c, auto lanes) {
    store(to.shift + c, load(first_pixel + c, lanes), AllLanes{});
  });
  to.sums.clear();
}

template <typename T, typename A>
inline void add_moments(Row<const T> row, int64_t channels, Moments<A>& to) {
  for_each_run(row.pixels, to.sums, [&](Range run) {
    for_each_tile<A>(run, channels, [&](Range tile, int64_t c, auto lanes) {
      VectorMoments<A> moments{to};
      moments.start(c);
      for (int64_t p = tile.begin; p < tile.end; ++p) {
        moments.add(load(row.data + p * row.stride + c, lanes));
      }
      moments.finish(c);
    });
  });
}

// to = map(from) as T
template <typename T, typename A>
inline void store_row(Row<const A> from, const ChannelMap<A>& params, int64_t channels, Row<T> to) {
  dispatch_map(params, [&](auto tag) {
    for_each_tile<A>({0, from.pixels}, channels, [&](Range tile, int64_t c, auto lanes) {
      const typename decltype(tag)::type map(params, c, lanes);
      for (int64_t p = tile.begin; p < tile.end; ++p) {
        const Vec<A> y = map(load(from.data + p * from.stride + c, AllLanes{}));
        store(to.data + p * to.stride + c, y, lanes);
      }
    });
  });
}

// Adds up dy, the gradients `grad` behind the map's activation, and dy * (raw - mean).
template <typename T, typename A>
inline void add_gradients(Row<const T> grad, const T* raw, const ChannelMap<A>& params,
                          const A* mean, int64_t channels, ChannelSums<A>& sums) {
  dispatch_map(params, [&](auto tag) {
    for_each_run(grad.pixels, sums, [&](Range run) {
      for_each_tile<A>(run, channels, [&](Range tile, int64_t c, auto lanes) {
        const typename decltype(tag)::type map(params, c, lanes);
        const Vec<A> center = load(mean + c, lanes);
        Vec<A> sum{}, dot{};
        for (int64_t p = tile.begin; p < tile.end; ++p) {
          const int64_t at = p * grad.stride + c;
          const Vec<A> x = load(raw + at, lanes);
          const Vec<A> dy = map.gradient(load(grad.data + at, lanes), x);
          sum += dy;
          dot += dy * (x - center);
        }
        sums.add(c, sum, dot);
      });
    });
  });
}

// to = the gradient `from` behind the map's activation, at the inputs `raw`. Adds up the stored
// gradients dy, and dy * (raw - mean).
template <typename T, typename A>
inline void store_gradient_row(Row<const A> from, const T* raw, const ChannelMap<A>& params,
                               const A* mean, int64_t channels, Row<T> to, ChannelSums<A>& sums) {
  dispatch_map(params, [&](auto tag) {
    for_each_run(from.pixels, sums, [&](Range run) {
      for_each_tile<A>(run, channels, [&](Range tile, int64_t c, auto lanes) {
        const typename decltype(tag)::type map(params, c, lanes);
        const Vec<A> center = mean ? load(mean + c, lanes) : Vec<A>{};
        Vec<A> sum{}, dot{};
        for (int64_t p = tile.begin; p < tile.end; ++p) {
          const Vec<A> x = load(raw + p * to.stride + c, lanes);
          const Vec<A> dy = map.gradient(load(from.data + p * from.stride + c, AllLanes{}), x);
          store(to.data + p * to.stride + c, dy, lanes);
          const Vec<A> stored = round_to<T>(dy);
          sum += stored;
          dot += stored * (x - center);
        }
        sums.add(c, sum, dot);
      });
    });
  });
}

}  // namespace
}  // namespace mobilenet_ext::cpu
