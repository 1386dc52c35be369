// The depthwise convolution's arithmetic for the kernels that networks have, 3 x 3 at stride 1 or
// 2, a row of outputs at a time: from a map in place, or from staged rows. Strips of up to eight
// neighbouring outputs share what they load. Taps outside a map in place are left out, so that maps
// of a few pixels, which are all border, do less work and not more; staged rows have zeros there.
// Other kernels, and gradients of weights: taps.inl.h.
#pragma once

#include <type_traits>

#include "kernels/cpu/partition.h"
#include "kernels/cpu/rows.inl.h"

namespace mobilenet_ext::cpu {
namespace {

constexpr int64_t kStrip = 8;  // outputs
// What comes from memory is asked for so much earlier than it is used: two strips of inputs, or
// what memory sends in the time that it takes to answer.
constexpr int64_t kPixelsAhead = 2 * kStrip, kLeastBytesAhead = 4 * 1024;

inline bool has_row_kernel(const ConvShape& s) {
  const bool overlaps = s.pad_left < 3 && s.pad_right < 3 && s.pad_top < 3 && s.pad_bottom < 3;
  return s.kernel == 3 && s.dilation == 1 && s.stride <= 2 && overlaps;
}

// An input row that lies under the kernel: its first pixel, and the first of its three taps.
template <typename A>
struct TapRow {
  const A* input;
  const A* weight;
};

// Where an op's outputs go, which reads and writes `pairs` maps of inputs and as many of outputs.
template <typename T>
inline Destination map_destination(const ConvShape& s, int64_t pairs, const void* output) {
  const int64_t pixels = s.in_height * s.in_width + s.out_height * s.out_width;
  const int64_t bytes = pairs * s.batch * pixels * s.channels * static_cast<int64_t>(sizeof(T));
  const bool is_aligned = reinterpret_cast<uintptr_t>(output) % MOBILENET_EXT_VECTOR_BYTES == 0 &&
                          s.channels % kLanes<Accumulator<T>> == 0;
  const bool is_past = kStoresPastCaches && kIsPlain<T> && is_aligned;
  return is_past && bytes > last_cache_bytes() ? Destination::kMemory : Destination::kMap;
}

// A row of outputs. Channels are whole vectors.
template <typename A>
struct ConvRow {
  TapRow<A> taps[3];
  int64_t tap_rows;    // of which so many lie inside the map
  int64_t tap_stride;  // elements from a tap's weights to those of the next
  int64_t channels;
  int64_t pitch;  // elements from an input pixel to the next
  Row<A> output;
  Destination destination;
  int64_t unread;  // the last so many tap rows have to come from memory
  void add(const A* input, const A* weight) { taps[tap_rows++] = {input, weight}; }
};

// Which outputs of a row have all their columns inside the map.
inline Range inner_outputs(const ConvShape& s) {
  const int64_t begin = min_of(ceil_div(s.pad_left, s.stride), s.out_width);
  const int64_t room = s.in_width + s.pad_left - 3;  // for the first column of an output
  const int64_t end = room < 0 ? 0 : min_of(divide(room, s.stride) + 1, s.out_width);
  return {begin, max_of(begin, end)};
}

// The same address, of whose origin the compiler then knows nothing. Otherwise it keeps one for
// each of the loads from it, and has no registers for so many.
template <typename A>
inline const A* opaque(const A* address) {
  asm("" : "+r"(address));
  return address;
}

// The columns of an output's taps that lie inside the map, as constants.
template <int kFirst, int kEnd>
struct Columns {
  static constexpr int first = kFirst, end = kEnd;
};
using AllColumns = Columns<0, 3>;

// Outputs x, x + 1, ... of a vector of channels; input column 0 of output x is `column`.
template <int kOutputs, int kStride, typename C, typename A, typename Sums>
__attribute__((always_inline)) inline void convolve_vector(const ConvRow<A>& row, int64_t x,
                                                           int64_t column, int64_t channel, C,
                                                           Sums& sums) {
  const int64_t pitch = row.pitch, at = column * pitch + channel;
  Vec<A> sum[kOutputs];
#pragma GCC unroll 8
  for (int i = 0; i < kOutputs; ++i) sum[i] = sums.start();
  for (int64_t y = 0; y < row.tap_rows; ++y) {
    const A* from = opaque(row.taps[y].input + at);
    const A* taps = row.taps[y].weight + channel;
    Vec<A> weight[3];
#pragma GCC unroll 3
    for (int i = C::first; i < C::end; ++i) weight[i] = load(taps + i * row.tap_stride, AllLanes{});
#pragma GCC unroll 32
    for (int i = C::first; i < (kOutputs - 1) * kStride + C::end; ++i) {
      const Vec<A> value = load(from + i * pitch, AllLanes{});
#pragma GCC unroll 8
      for (int o = 0; o < kOutputs; ++o) {
        const int tap = i - o * kStride;
        if (tap >= C::first && tap < C::end) sum[o] += value * weight[tap];
      }
    }
  }
  A* const to = row.output.at(x, channel);
#pragma GCC unroll 8
  for (int i = 0; i < kOutputs; ++i) {
    store_to(row.destination, to + i * row.output.stride, sums(sum[i], x + i), AllLanes{});
  }
}

// How far ahead a stream is asked for, in elements; `pitch` of them are a pixel.
inline int64_t elements_ahead(int64_t pixels, int64_t pitch, int64_t element_bytes) {
  return max_of(pixels * pitch, divide(kLeastBytesAhead, element_bytes));
}

// Asks for what the next strips will need. (A call of it GCC would leave out, as without effect.)
template <int kStride, typename A>
__attribute__((always_inline)) inline void ask_for_strip(const ConvRow<A>& row, int64_t x,
                                                         int64_t column, int64_t channel) {
  constexpr int64_t kPixels = kStrip * kStride;
  const int64_t in = elements_ahead(kPixelsAhead, row.pitch, sizeof(A));
  const int64_t out = elements_ahead(kPixelsAhead / kStride, row.output.stride, sizeof(A));
  for (int64_t y = row.tap_rows - row.unread; y < row.tap_rows; ++y) {
    const A* const from = row.taps[y].input + column * row.pitch + channel + in;
#pragma GCC unroll 16
    for (int64_t i = 0; i < kPixels; ++i) __builtin_prefetch(from + i * row.pitch);
  }
  if (row.destination == Destination::kMemory) return;
  const A* const to = row.output.at(x, channel) + out;
#pragma GCC unroll 8
  for (int64_t i = 0; i < kStrip; ++i) __builtin_prefetch(to + i * row.output.stride);
}

// Outputs x, x + 1, ... in all channels.
template <int kOutputs, int kStride, typename C, typename A, typename Epilogue>
inline void convolve_strip(const ConvRow<A>& row, int64_t x, int64_t column, C columns,
                           const Epilogue& epilogue) {
  for (int64_t c = 0; c < row.channels; c += kLanes<A>) {
    if (kOutputs == kStrip && row.destination != Destination::kScratch) {
      ask_for_strip<kStride>(row, x, column, c);
    }
    auto sums = epilogue.at(c);
    convolve_vector<kOutputs, kStride>(row, x, column, c, columns, sums);
    sums.end();
  }
  epilogue.count(kOutputs);
}

// Calls f(columns) for output x of a row, which reaches over an edge of the map.
template <typename F>
inline void dispatch_columns(const ConvShape& s, int64_t x, F f) {
  const int64_t from = x * s.stride - s.pad_left;
  const int64_t first = max_of(0, -from), end = min_of(3, s.in_width - from);
  if (first == 0) return end == 2 ? f(Columns<0, 2>{}) : f(Columns<0, 1>{});
  if (first == 2) return f(Columns<2, 3>{});
  return end == 3 ? f(Columns<1, 3>{}) : f(Columns<1, 2>{});
}

// Outputs `at`, all of whose columns are there, in strips of all channels: in the order of memory.
template <int kStride, typename A, typename Epilogue>
inline void convolve_strips(const ConvRow<A>& row, Range at, int64_t pad,
                            const Epilogue& epilogue) {
  int64_t x = at.begin;
  const auto strip = [&](auto outputs) {
    constexpr int kOutputs = decltype(outputs)::value;
    convolve_strip<kOutputs, kStride>(row, x, x * kStride - pad, AllColumns{}, epilogue);
    x += kOutputs;
  };
  while (x + kStrip <= at.end) strip(std::integral_constant<int, kStrip>{});
  const int64_t rest = at.end - x;
  if (rest & 4) strip(std::integral_constant<int, 4>{});
  if (rest & 2) strip(std::integral_constant<int, 2>{});
  if (rest & 1) strip(std::integral_constant<int, 1>{});
}

// Outputs `at`, which reach over an edge of the map.
template <int kStride, typename A, typename Epilogue>
inline void convolve_edge(const ConvShape& s, const ConvRow<A>& row, Range at,
                          const Epilogue& epilogue) {
  for (int64_t x = at.begin; x < at.end; ++x) {
    dispatch_columns(s, x, [&](auto columns) {
      convolve_strip<1, kStride>(row, x, x * kStride - s.pad_left, columns, epilogue);
    });
  }
}

// A row from a map in place. The outputs `inner` have all their columns inside the map.
template <int kStride, typename A, typename Epilogue>
inline void convolve_map_row(const ConvShape& s, const ConvRow<A>& row, Range inner,
                             const Epilogue& epilogue) {
  convolve_edge<kStride>(s, row, {0, inner.begin}, epilogue);
  convolve_strips<kStride>(row, inner, s.pad_left, epilogue);
  convolve_edge<kStride>(s, row, {inner.end, s.out_width}, epilogue);
}

// Outputs `at` of a vector of channels.
template <int kStride, typename A, typename Sums>
__attribute__((always_inline)) inline void convolve_run(const ConvRow<A>& row, Range at, int64_t c,
                                                        Sums& sums) {
  int64_t x = at.begin;
  for (; x + kStrip <= at.end; x += kStrip) {
    if (row.destination == Destination::kMap) ask_for_strip<kStride>(row, x, x * kStride, c);
    convolve_vector<kStrip, kStride>(row, x, x * kStride, c, AllColumns{}, sums);
  }
  const int64_t rest = at.end - x;
  if (rest & 4) {
    convolve_vector<4, kStride>(row, x, x * kStride, c, AllColumns{}, sums);
    x += 4;
  }
  if (rest & 2) {
    convolve_vector<2, kStride>(row, x, x * kStride, c, AllColumns{}, sums);
    x += 2;
  }
  if (rest & 1) convolve_vector<1, kStride>(row, x, x * kStride, c, AllColumns{}, sums);
}

// A row from staged rows, which have their padding and are in a cache: a vector of channels for as
// many outputs as are counted at once. Past the caches it goes in the order of memory, since there
// are few places where lines wait to be full.
template <int kStride, typename A, typename Epilogue>
inline void convolve_staged_row(const ConvRow<A>& row, const Epilogue& epilogue) {
  if (row.destination == Destination::kMemory) {
    return convolve_strips<kStride>(row, {0, row.output.pixels}, 0, epilogue);
  }
  for (int64_t x = 0; x < row.output.pixels; x += kRunPixels) {
    const Range at{x, min_of(x + kRunPixels, row.output.pixels)};
    for (int64_t c = 0; c < row.channels; c += kLanes<A>) {
      auto sums = epilogue.at(c);
      convolve_run<kStride>(row, at, c, sums);
      sums.end();
    }
    epilogue.count(at.size());
  }
}

}  // namespace
}  // namespace mobilenet_ext::cpu
