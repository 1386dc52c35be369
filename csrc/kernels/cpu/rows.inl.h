// The loops over one row of pixels of one block of channels that bring it in and take it out. A
// tensor row holds storage type T; a staged row holds accumulators A, whole vectors only, with
// zeros in the lanes past the last channel and in the pixels outside the image. So the loops that
// do the arithmetic of any kernel (taps.inl.h, gemm.inl.h) know nothing of types, maps or borders.
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

// Where a row goes: scratch is read next, and is in a cache; lines of a map are asked for; and what
// would not stay in a cache is stored past them, whole vectors at multiples of their size.
enum class Destination { kScratch, kMap, kMemory };

template <typename T, typename Lanes>
inline void store_to(Destination destination, T* to, Vec<Accumulator<T>> v, Lanes lanes) {
  if constexpr (kStoresPastCaches && kIsPlain<T> && std::is_same_v<Lanes, AllLanes>) {
    if (destination == Destination::kMemory) return store_past_caches(to, v);
  }
  store(to, v, lanes);
}

// Per-channel values stay in registers for this many pixels, unless a pixel has so many channels
// that memory would no longer be read in order: hardware follows one stream where it loses four.
constexpr int64_t kTilePixels = 4, kTileChannels = 64;

// Calls f(tile, c, lanes) for every tile of pixels and vector of channels.
template <typename A, typename F>
inline void for_each_tile(Range pixels, int64_t channels, F f) {
  const int64_t size = channels > kTileChannels ? 1 : kTilePixels;
  for (int64_t p = pixels.begin; p < pixels.end; p += size) {
    const Range tile{p, min_of(p + size, pixels.end)};
    for_each_vector<A>(channels, [&](int64_t c, auto lanes) { f(tile, c, lanes); });
  }
}

// Rows of a map are used once and lie one behind the other, so that what will be wanted soon is
// known: it is asked for earlier than memory takes to answer. A core reads so much in 0.2 us.
constexpr int64_t kBytesAhead = 8 * 1024;

template <typename T>
inline void ask_ahead(const T* at) {
  __builtin_prefetch(reinterpret_cast<const char*>(at) + kBytesAhead);
}

// to = map(from); `to` is a Row, or anything else with whole vectors at(pixel, channel).
template <typename T, typename A, typename To = Row<A>>
inline void stage_row(Row<const T> from, const ChannelMap<A>& params, int64_t channels, To to) {
  dispatch_map(params, [&](auto tag) {
    for_each_tile<A>({0, from.pixels}, channels, [&](Range tile, int64_t c, auto lanes) {
      const typename decltype(tag)::type map(params, c, lanes);
      for (int64_t p = tile.begin; p < tile.end; ++p) {
        ask_ahead(from.at(p, c));
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
        ask_ahead(grad.data + at);
        if (raw) ask_ahead(raw + at);
        const Vec<A> r = raw ? load(raw + at, lanes) : Vec<A>{};
        store(to.at(p, c), raw_gradient(load(grad.data + at, lanes), r), AllLanes{});
      }
    });
  });
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
inline void store_row(Row<const A> from, const ChannelMap<A>& params, int64_t channels, Row<T> to,
                      Destination destination = Destination::kMap) {
  dispatch_map(params, [&](auto tag) {
    for_each_tile<A>({0, from.pixels}, channels, [&](Range tile, int64_t c, auto lanes) {
      const typename decltype(tag)::type map(params, c, lanes);
      for (int64_t p = tile.begin; p < tile.end; ++p) {
        const Vec<A> y = map(load(from.data + p * from.stride + c, AllLanes{}));
        store_to(destination, to.data + p * to.stride + c, y, lanes);
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
                               const A* mean, int64_t channels, Row<T> to, ChannelSums<A>& sums,
                               Destination destination = Destination::kMap) {
  dispatch_map(params, [&](auto tag) {
    for_each_run(from.pixels, sums, [&](Range run) {
      for_each_tile<A>(run, channels, [&](Range tile, int64_t c, auto lanes) {
        const typename decltype(tag)::type map(params, c, lanes);
        const Vec<A> center = mean ? load(mean + c, lanes) : Vec<A>{};
        Vec<A> sum{}, dot{};
        for (int64_t p = tile.begin; p < tile.end; ++p) {
          const int64_t at = p * to.stride + c;
          ask_ahead(raw + at);
          // A store, too, fetches its line first.
          if (destination == Destination::kMap) ask_ahead(to.data + at);
          const Vec<A> x = load(raw + at, lanes);
          const Vec<A> dy = map.gradient(load(from.data + p * from.stride + c, AllLanes{}), x);
          store_to(destination, to.data + at, dy, lanes);
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
