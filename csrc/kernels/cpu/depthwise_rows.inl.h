// The depthwise convolution's arithmetic for the kernels that networks have, 3 x 3 at stride 1 or 2,
// a row of outputs at a time: from a map in place, or from staged rows. Strips of up to eight
// neighbouring outputs share what they load, in all channels before the next strip, so that memory
// is read in order. Taps outside the map are left out, so that maps of a few pixels, which are all
// border, do less work and not more. Other kernels: taps.inl.h.
#pragma once

#include "kernels/cpu/partition.h"
#include "kernels/cpu/rows.inl.h"

namespace mobilenet_ext::cpu {
namespace {

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

// A row of outputs. Channels are whole vectors.
template <typename A>
struct ConvRow {
  TapRow<A> taps[3];
  int64_t tap_rows;    // of which so many lie inside the map
  int64_t tap_stride;  // elements from a tap's weights to those of the next
  int64_t channels;
  int64_t pitch;   // elements from an input pixel to the next
  Row<A> output;
  int64_t unread;    // the last so many tap rows have to come from memory
  bool is_streamed;  // outputs go there
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

// What happens to sums before they are stored: they are mapped, from zero on, ...
template <typename A, typename Map>
struct MapSums {
  const ChannelMap<A>& params;
  Map map{params, 0, AllLanes{}};

  void begin(int64_t channel) { map = Map(params, channel, AllLanes{}); }
  Vec<A> start() const { return Vec<A>{}; }
  Vec<A> operator()(Vec<A> sum) const { return map(sum); }
  void end(int64_t) const {}
  void count(int64_t) const {}
};

// ... or counted.
template <typename A>
struct CountSums {
  Moments<A>& moments;
  VectorMoments<A> vector{moments};

  void begin(int64_t channel) { vector.start(channel); }
  Vec<A> start() const { return Vec<A>{}; }
  Vec<A> operator()(Vec<A> sum) {
    vector.add(sum);
    return sum;
  }
  void end(int64_t channel) const { vector.finish(channel); }
  void count(int64_t pixels) const { moments.sums.count(pixels); }
};

// The columns of an output's taps that lie inside the map, as constants.
template <int kFirst, int kEnd>
struct Columns {
  static constexpr int first = kFirst, end = kEnd;
};
using AllColumns = Columns<0, 3>;

// Outputs x, x + 1, ... of a vector of channels; input column 0 of output x is `column`.
template <int kOutputs, int kStride, typename C, typename A, typename Epilogue>
__attribute__((always_inline)) inline void convolve_vector(const ConvRow<A>& row, int64_t x,
                                                           int64_t column, int64_t channel, C,
                                                           Epilogue& epilogue) {
  const int64_t pitch = row.pitch, at = column * pitch + channel;
  Vec<A> sum[kOutputs];
#pragma GCC unroll 8
  for (int i = 0; i < kOutputs; ++i) sum[i] = epilogue.start();
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
    store(to + i * row.output.stride, epilogue(sum[i]), AllLanes{});
  }
}

// Asks for what a strip some 8 KB on will need. (A call of it GCC would leave out, as it has no
// effect.)
template <int kOutputs, int kStride, typename A>
__attribute__((always_inline)) inline void ask_for_vector(const ConvRow<A>& row, int64_t x,
                                                          int64_t column, int64_t channel) {
  for (int64_t y = row.tap_rows - row.unread; y < row.tap_rows; ++y) {
    const A* const from = row.taps[y].input + column * row.pitch + channel;
#pragma GCC unroll 16
    for (int i = 0; i < kOutputs * kStride; ++i) ask_ahead(from + i * row.pitch);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kOutputs; ++i) ask_ahead(row.output.at(x + i, channel));
}

// Outputs x, x + 1, ... in all channels.
template <int kOutputs, int kStride, typename C, typename A, typename Epilogue>
inline void convolve_strip(const ConvShape& s, const ConvRow<A>& row, int64_t x, C columns,
                           Epilogue& epilogue) {
  const int64_t column = x * kStride - s.pad_left;
  for (int64_t c = 0; c < row.channels; c += kLanes<A>) {
    if (kOutputs == 8 && row.is_streamed) ask_for_vector<8, kStride>(row, x, column, c);
    epilogue.begin(c);
    convolve_vector<kOutputs, kStride>(row, x, column, c, columns, epilogue);
    epilogue.end(c);
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

// A row, of which the outputs `inner` have all their columns inside the map.
template <int kStride, typename A, typename Epilogue>
inline void convolve(const ConvShape& s, const ConvRow<A>& row, Range inner, Epilogue epilogue) {
  for (int64_t x = 0; x < s.out_width;) {
    const int64_t inside = x < inner.begin ? 0 : inner.end - x;
    if (inside >= 8) {
      convolve_strip<8, kStride>(s, row, x, AllColumns{}, epilogue);
      x += 8;
    } else if (inside >= 4) {
      convolve_strip<4, kStride>(s, row, x, AllColumns{}, epilogue);
      x += 4;
    } else if (inside >= 2) {
      convolve_strip<2, kStride>(s, row, x, AllColumns{}, epilogue);
      x += 2;
    } else if (inside == 1) {
      convolve_strip<1, kStride>(s, row, x, AllColumns{}, epilogue);
      x += 1;
    } else {
      dispatch_columns(
          s, x, [&](auto columns) { convolve_strip<1, kStride>(s, row, x, columns, epilogue); });
      x += 1;
    }
  }
}

}  // namespace
}  // namespace mobilenet_ext::cpu
