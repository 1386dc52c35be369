// What the forward and the backward depthwise convolution share: packed weights, and a ring of
// staged image rows. The ring holds the rows that a row of outputs needs; rows are staged once
// and stay in L2. Rows are zero-padded left and right, and tap rows that only meet padding are left
// out, so that the arithmetic never meets a border, and a small map pays for its own rows only.
#pragma once

#include "kernels/cpu/memory.h"
#include "kernels/cpu/taps.inl.h"

namespace mobilenet_ext::cpu {
namespace {

// Where item `index` works.
struct ConvItem {
  Range images, rows, channels;
  int64_t partial;  // index among the partial results
};

inline ConvItem conv_item(const ConvShape& s, const ConvPartition& p, int64_t index) {
  const int64_t partial = divide(index, p.blocks), group = divide(partial, p.bands);
  return {chunk(group, p.images, s.batch), chunk(partial - group * p.bands, p.rows, s.out_height),
          chunk(index - partial * p.blocks, p.channels, s.channels), partial};
}

// Slots of a ring for that many rows at once.
inline int64_t ring_slots(int64_t rows) {
  int64_t slots = 1;
  while (slots < rows) slots *= 2;
  return slots;
}

// The weights as accumulators, [K * K, stride]: a vector of channels for every tap.
template <typename A>
struct PackedWeight {
  A* data;
  int64_t stride;
};

template <typename T, typename A, typename Args>
inline void pack_weight(const Args& args, Range channels, const PackedWeight<A>& to) {
  const int64_t taps = args.shape.kernel * args.shape.kernel;
  for (int64_t t = 0; t < taps; ++t) {
    const T* tap = static_cast<const T*>(args.weight) + t * args.weight_tap_stride;
    for_each_vector<A>(channels.size(), [&](int64_t c, auto lanes) {
      const int64_t first = channels.begin + c;
      T gathered[kLanes<A>] = {};
      const int64_t count = min_of(kLanes<A>, channels.size() - c);
      for (int64_t i = 0; i < count; ++i) {
        gathered[i] = tap[(first + i) * args.weight_channel_stride];
      }
      store(to.data + t * to.stride + first, load(gathered, lanes), AllLanes{});
    });
  }
}

// Rows of `pixels` staged pixels of `stride` channels. As many slots as a power of two, so that a
// row is found without a division.
template <typename A>
struct Ring {
  A* data;
  int64_t slots, pixels, stride;

  Ring(int64_t rows, int64_t for_pixels, int64_t for_stride, Arena& arena)
      : slots(ring_slots(rows)), pixels(for_pixels), stride(for_stride) {
    data = arena.take<A>(slots * pixels * stride);
  }
  A* row(int64_t r) const { return data + (r & (slots - 1)) * pixels * stride; }
  void clear() const { __builtin_memset(data, 0, sizeof(A) * slots * pixels * stride); }
};

// The ring of input rows. Rows and pixels count from the padded image's corner.
inline int64_t input_ring_pixels(const ConvShape& s) {
  return (s.out_width - 1) * s.stride + kernel_extent(s);
}

// Stages padded row r of an image ([H, W, C] from `image`, at the block's first channel), unless
// all of it is padding, which no tap reads.
template <typename T, typename A>
inline void stage_input_row(const ConvShape& s, const T* image, int64_t r, const ChannelMap<A>& map,
                            int64_t channels, const Ring<A>& ring) {
  const int64_t y = r - s.pad_top;
  if (y < 0 || y >= s.in_height) return;
  const int64_t pixels = min_of(s.in_width, ring.pixels - s.pad_left);
  stage_row<T, A>({image + y * s.in_width * s.channels, pixels, s.channels}, map, channels,
                  {ring.row(r) + s.pad_left * ring.stride, pixels, ring.stride});
}

// Whether one of `count` positions first, first + step, ... may lie within [0, size).
inline bool may_meet(int64_t first, int64_t count, int64_t step, int64_t size) {
  return first < size && first + (count - 1) * step >= 0;
}

// The columns of a kernel that meet something in a row, the same ones in every row: their numbers,
// and where in a staged row the first pixel of each lies.
struct TapColumns {
  int64_t count;
  int64_t pixels;  // that they reach, in the backward
  int64_t *column, *offset;

  TapColumns(int64_t most, Arena& arena)
      : count(0), pixels(0), column(arena.take<int64_t>(most)), offset(arena.take<int64_t>(most)) {}
  void add(int64_t number, int64_t from) {
    column[count] = number;
    offset[count] = from;
    ++count;
  }
};

inline void find_forward_columns(const ConvShape& s, int64_t ring_stride, TapColumns& columns) {
  columns.count = 0;
  for (int64_t kx = 0; kx < s.kernel; ++kx) {
    const int64_t from_x = kx * s.dilation;
    if (!may_meet(from_x - s.pad_left, s.out_width, s.stride, s.in_width)) continue;
    columns.add(kx, from_x * ring_stride);
  }
}

// The taps of kernel row `ky`, which lies over the staged row `from`. `weight` is [K * K,
// weight_stride]: the weights, or what adds up their gradients.
template <typename A, typename W>
inline void add_taps(const TapColumns& columns, const A* from, W* weight, int64_t weight_stride,
                     Taps<A, W>& taps) {
  for (int64_t i = 0; i < columns.count; ++i) {
    taps.add(from + columns.offset[i], weight + columns.column[i] * weight_stride);
  }
}

// The taps of output row `y` that meet the image, in an input ring.
template <typename A, typename W>
inline void find_forward_taps(const ConvShape& s, int64_t y, const TapColumns& columns,
                              const Ring<A>& ring, W* weight, int64_t weight_stride,
                              Taps<A, W>& taps) {
  taps.count = 0;
  for (int64_t ky = 0; ky < s.kernel; ++ky) {
    const int64_t from_y = y * s.stride + ky * s.dilation;
    if (!may_meet(from_y - s.pad_top, 1, 1, s.in_height)) continue;
    add_taps(columns, ring.row(from_y), weight + ky * s.kernel * weight_stride, weight_stride,
             taps);
  }
}

// Pixels of a ring lie an odd number of cache lines apart: at 4 KB the pixels that a kernel meets
// would all fall into one set of the L1 cache.
inline int64_t ring_stride(int64_t channels) {
  return (channels / kChannelGrain | 1) * kChannelGrain;
}

// Channels rounded up to whole vectors: what the loops over staged rows run to.
template <typename A>
inline int64_t whole_vectors(int64_t channels) {
  return round_up(channels, kLanes<A>);
}

}  // namespace
}  // namespace mobilenet_ext::cpu
