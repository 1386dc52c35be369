// What the passes of the pointwise convolution share: how a product is divided into items, weights
// in panels, and the tiles of pixels that lie in the L2 cache between being staged and multiplied.
#pragma once

#include "kernels/cpu/gemm.inl.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/rows.inl.h"
#include "kernels/pointwise_conv.h"

namespace mobilenet_ext::cpu {
namespace {

// An item of this many multiply-adds runs for some 10 us, against less than 1 us to take it.
constexpr int64_t kItemProducts = 512 * 1024;
// Staged pixels share the L2 cache with the weights that stream past them.
inline int64_t staged_bytes() { return l2_cache_bytes() / 8 * 5; }
// Each share of the columns stages its pixels again: it should multiply them often.
constexpr int64_t kMinShareColumns = 64;
// A range of pixels reads its share of the weights once more.
constexpr int64_t kMinRangePixels = 48;

// Items of a product [pixels, depth] x [depth, columns]: ranges of pixels x shares of columns.
struct ProductPartition {
  int64_t pixels, ranges;   // pixels in a range, ranges
  int64_t columns, shares;  // columns in a share, whole panels; shares
  int64_t tile;             // pixels staged at a time

  int64_t items() const { return ranges * shares; }
};

inline int64_t wanted_products(int64_t pixels, int64_t depth, int64_t columns) {
  return max_of(1, min_of(kMaxItems, pixels * depth * columns / kItemProducts));
}

// Pixels of so many staged channels that fit, in whole register tiles.
inline int64_t staged_pixels(int64_t channels, int64_t element_bytes) {
  const int64_t fitting = staged_bytes() / (row_pitch(channels) * element_bytes);
  return max_of(12, fitting / 12 * 12);
}

inline ProductPartition partition_product(int64_t pixels, int64_t depth, int64_t columns,
                                          int64_t element_bytes) {
  const int64_t wanted = wanted_products(pixels, depth, columns);
  ProductPartition p;
  p.ranges = max_of(1, min_of(wanted, ceil_div(pixels, staged_pixels(depth, element_bytes))));
  p.shares = min_of(ceil_div(columns, kMinShareColumns), ceil_div(wanted, p.ranges));
  p.ranges = max_of(p.ranges, min_of(ceil_div(wanted, p.shares), pixels / kMinRangePixels));
  p.pixels = max_of(1, ceil_div(pixels, p.ranges));
  p.ranges = ceil_div(pixels, p.pixels);
  p.columns = round_to_panels(ceil_div(columns, p.shares));
  p.shares = ceil_div(columns, p.columns);
  p.tile = min_of(p.pixels, staged_pixels(depth + p.columns, element_bytes));
  return p;
}

// Where item `index` works.
struct ProductItem {
  int64_t range;
  Range pixels, columns;
};

inline ProductItem product_item(const ProductPartition& p, int64_t index, int64_t pixels,
                                int64_t columns) {
  const int64_t range = divide(index, p.shares);
  return {range, chunk(range, p.pixels, pixels),
          chunk(index - range * p.shares, p.columns, columns)};
}

// Items that follow each other may share their pixels, which are then staged once.
class StagedPixels {
 public:
  // Whether `pixels` have to be staged, as they will be.
  bool replace(Range pixels) {
    if (pixels.begin == now_.begin && pixels.end == now_.end) return false;
    now_ = pixels;
    return true;
  }

 private:
  Range now_{0, 0};
};

template <typename F>
inline void for_each_staged(Range pixels, int64_t tile, F f) {
  for (int64_t p = pixels.begin; p < pixels.end; p += tile) {
    f(Range{p, min_of(p + tile, pixels.end)});
  }
}

// A matrix [rows, depth] by strides.
template <typename T>
struct MatrixView {
  const T* data;
  int64_t row_stride, depth_stride, rows, depth;
};

// Rows of a panel from depth k on, an element of each a line; rows past the last are 0.
template <typename T, typename A>
inline void pack_lines(const MatrixView<T>& from, Range rows, Range depth, A* line) {
  for (int64_t k = depth.begin; k < depth.end; ++k, line += kPanel) {
    const T* at = from.data + rows.begin * from.row_stride + k * from.depth_stride;
    T gathered[kPanel] = {};
    for (int64_t i = 0; i < rows.size(); ++i) gathered[i] = at[i * from.row_stride];
    for (int64_t i = 0; i < kPanel; i += kLanes<A>) {
      store(line + i, load(gathered + i, AllLanes{}), AllLanes{});
    }
  }
}

// The same of whole panels that are contiguous along their depth: squares, transposed.
template <typename T, typename A>
inline void pack_squares(const MatrixView<T>& from, int64_t row, int64_t depth, A* line) {
  for (int64_t k = 0; k < depth; k += kLanes<A>, line += kLanes<A> * kPanel) {
    for (int64_t r = 0; r < kPanel; r += kLanes<A>) {
      Vec<A> square[kLanes<A>];
      for (int i = 0; i < kLanes<A>; ++i) {
        square[i] = load(from.data + (row + r + i) * from.row_stride + k, AllLanes{});
      }
      transpose<A>(square);
      for (int i = 0; i < kLanes<A>; ++i) store(line + i * kPanel + r, square[i], AllLanes{});
    }
  }
}

// The same of whole panels that are contiguous along their rows: copied.
template <typename T, typename A>
inline void pack_copies(const MatrixView<T>& from, int64_t row, A* line) {
  for (int64_t k = 0; k < from.depth; ++k, line += kPanel) {
    for (int64_t r = 0; r < kPanel; r += kLanes<A>) {
      store(line + r, load(from.data + row + r + k * from.depth_stride, AllLanes{}), AllLanes{});
    }
  }
}

// Packs panels [begin, end) of `from` into `to` [panels, depth, kPanel].
template <typename T, typename A>
inline void pack_panels(const MatrixView<T>& from, int64_t begin, int64_t end, A* to) {
  for (int64_t panel = begin; panel < end; ++panel) {
    const Range rows = chunk(panel, kPanel, from.rows);
    A* lines = to + panel * from.depth * kPanel;
    if (rows.size() == kPanel && from.row_stride == 1) {
      pack_copies(from, rows.begin, lines);
      continue;
    }
    const bool in_squares = rows.size() == kPanel && from.depth_stride == 1;
    const int64_t squares = in_squares ? from.depth - from.depth % kLanes<A> : 0;
    pack_squares(from, rows.begin, squares, lines);
    pack_lines(from, rows, {squares, from.depth}, lines + squares * kPanel);
  }
}

// Columns [columns.begin, columns.end) of a * panels, as whole panels of `c`.
template <typename A>
inline void multiply(Row<const A> a, int64_t depth, const A* panels, Range columns, Row<A> c) {
  Product<A> p;
  p.a = a.data;
  p.a_stride = a.stride;
  p.rows = a.pixels;
  p.depth = depth;
  p.b = panels + columns.begin * depth;
  p.bias = nullptr;
  p.panels = round_to_panels(columns.size()) / kPanel;
  p.c = c.data;
  p.c_stride = c.stride;
  p.following = p.b;
  product<Activation::kNone>(p);
}

// A row of so many pixels of dense NHWC memory, from `channel` on.
template <typename T>
inline Row<T> map_row(T* map, Range pixels, int64_t channels, int64_t channel) {
  return {map + pixels.begin * channels + channel, pixels.size(), channels};
}

}  // namespace
}  // namespace mobilenet_ext::cpu
