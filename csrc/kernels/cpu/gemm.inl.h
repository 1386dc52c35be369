// Matrix product c = act(a * b + bias) with b packed in panels of kPanel columns (panels.h), and
// the register tile that it is made of. A tile of kRows x kPanels * kPanel sums stays in registers
// over the whole depth; each step loads a line of b per panel and broadcasts an element of each row
// of a. Few rows take more panels, so that there are always enough independent sums to hide the
// latency of an FMA. Rows are divided evenly, 49 as 4 x 6 + 5 x 5: there is no slow tail. Every sum
// runs over the depth in order, so that no result depends on how the work was divided.
#pragma once

#include "kernels/activation.h"
#include "kernels/cpu/partition.h"
#include "kernels/cpu/vec.h"
#include "kernels/panels.h"

namespace mobilenet_ext::cpu {
namespace {

// Vectors of sums in a tile: 12 of AVX2's 16 registers, 24 of AVX-512's 32.
constexpr int kTileSums = kLanes<float> == 16 ? 24 : kLanes<float> == 8 ? 12 : 8;
template <typename A>
constexpr int kPanelVectors = static_cast<int>(kPanel) / kLanes<A>;
// Panels side by side in a tile of few columns: 12 rows x 2 vectors of AVX-512, 6 x 2 of AVX2.
template <typename A>
constexpr int kNarrowTilePanels = kPanelVectors<A> == 1 ? 2 : 1;
// Rows of a tile that is so many vectors wide, of at most `limit`.
constexpr int most_tile_rows(int vectors, int limit) {
  return kTileSums / vectors < limit ? kTileSums / vectors : limit;
}

// Elements from a row of staged pixels to the next. Rows that lie a multiple of 1 KB apart would
// meet in few sets of the L1 cache.
inline int64_t row_pitch(int64_t channels) {
  const int64_t padded = round_to_panels(channels);
  return padded % 256 == 0 ? padded + kPanel : padded;
}

// Where a tile's panels crowd the L1 cache, it asks for their lines so many steps ahead. At a
// depth of 128 the instructions cost what they gain, and so they do in a tile of few rows, which
// waits for its weights anyway.
constexpr int64_t kStepsAhead = kLanes<float> >= 8 ? 16 : 0;
constexpr int64_t kDeep = 192, kFewRows = 3;

// Steps in one round of a tile's loop. AVX2's 12 FMAs and 8 loads leave room for four instructions
// in their six cycles: too few to count every step. AVX-512 has the time.
constexpr int kStepsPerRound = kLanes<float> == 16 ? 1 : 4;

// What a product fetches into the L2 cache on its way, `step` elements each step of a tile.
template <typename A>
struct Fetch {
  const A* from;
  int64_t step;
};

// kWidth: vectors of each panel's lines that count; fewer than all of them go with a single panel.
template <typename A, int kRows, int kPanels, int kWidth = kPanelVectors<A>>
struct Tile {
  static_assert(kPanels == 1 || kWidth == kPanelVectors<A>);
  static constexpr int kVectors = kPanels * kWidth;
  Vec<A> sum[kRows][kVectors];

  // Every row starts with `first` [kPanels * kPanel].
  __attribute__((always_inline)) inline void start(const A* first) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Vec<A> value = first ? load(first + v * kLanes<A>, AllLanes{}) : Vec<A>{};
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) sum[r][v] = value;
    }
  }

  // sum += a [kRows, depth] * b [depth, kPanels * kPanel]; the lines of b are kPanel elements.
  __attribute__((always_inline)) inline void add(const A* a, int64_t row_stride,
                                                 int64_t depth_stride, const A* b,
                                                 int64_t panel_stride, int64_t depth) {
#pragma GCC unroll kStepsPerRound
    for (int64_t k = 0; k < depth; ++k) {
      step<false>(a + k * depth_stride, row_stride, b + k * kPanel, panel_stride);
    }
  }

  // The same for a deep b.
  __attribute__((always_inline)) inline void add_deep(const A* a, int64_t row_stride, const A* b,
                                                      int64_t panel_stride, int64_t depth,
                                                      Fetch<A> fetch) {
#pragma GCC unroll kStepsPerRound
    for (int64_t k = 0; k < depth; ++k) {
      __builtin_prefetch(fetch.from + k * fetch.step, 0, 2);
      step<true>(a + k, row_stride, b + k * kPanel, panel_stride);
    }
  }

  // The same where the depth of `a` lies scattered: element k of each row at offsets[k].
  __attribute__((always_inline)) inline void add_scattered(const A* a, int64_t row_stride,
                                                           const int64_t* offsets, const A* b,
                                                           int64_t panel_stride, int64_t depth) {
#pragma GCC unroll kStepsPerRound
    for (int64_t k = 0; k < depth; ++k)
      step<false>(a + offsets[k], row_stride, b + k * kPanel, panel_stride);
  }

  template <bool kPrefetch>
  __attribute__((always_inline)) inline void step(const A* a, int64_t row_stride, const A* b,
                                                  int64_t panel_stride) {
    Vec<A> line[kVectors];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const A* from = b + p * panel_stride;
      if constexpr (kPrefetch) __builtin_prefetch(from + kStepsAhead * kPanel);
#pragma GCC unroll 8
      for (int v = 0; v < kWidth; ++v) {
        line[p * kWidth + v] = load(from + v * kLanes<A>, AllLanes{});
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec<A> x = broadcast(a[r * row_stride]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[r][v] += x * line[v];
    }
  }

  template <Activation kActivation>
  __attribute__((always_inline)) inline void finish(A* c, int64_t c_stride) const {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        store(c + r * c_stride + v * kLanes<A>, activate<kActivation>(sum[r][v]), AllLanes{});
      }
    }
  }

  // c += the sums
  __attribute__((always_inline)) inline void add_to(A* c, int64_t c_stride) const {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        A* const at = c + r * c_stride + v * kLanes<A>;
        store(at, load(at, AllLanes{}) + sum[r][v], AllLanes{});
      }
    }
  }
};

// c [rows, columns] = act(a [rows, depth] * b + bias); c is written in whole panels.
template <typename A>
struct Product {
  const A* a;
  int64_t a_stride, rows, depth;
  const A* b;     // the first of the panels to use
  const A* bias;  // of the first of them, or null: 0
  int64_t panels;
  A* c;
  int64_t c_stride;
  const A* following;  // weights of the product after this one
};

// By itself, as its caller would take registers from the sums.
template <int kRows, int kPanels, Activation kActivation, typename A>
__attribute__((noinline)) void product_tile(const Product<A>& p, int64_t row, int64_t panel,
                                            Fetch<A> fetch) {
  const int64_t panel_stride = p.depth * kPanel;
  const A *a = p.a + row * p.a_stride, *b = p.b + panel * panel_stride;
  Tile<A, kRows, kPanels> tile;
  tile.start(p.bias ? p.bias + panel * kPanel : nullptr);
  if (kStepsAhead > 0 && kRows > kFewRows && p.depth >= kDeep) {
    tile.add_deep(a, p.a_stride, b, panel_stride, p.depth, fetch);
  } else {
    tile.add(a, p.a_stride, 1, b, panel_stride, p.depth);
  }
  tile.template finish<kActivation>(p.c + row * p.c_stride + panel * kPanel, p.c_stride);
}

// Calls f(integer constant r) for r == rows, 1 <= rows <= kMax.
template <int kRows>
struct RowsConstant {
  static constexpr int value = kRows;
};

template <int kMax, typename F>
inline void dispatch_rows(int64_t rows, F f) {
  if constexpr (kMax > 1) {
    if (rows < kMax) return dispatch_rows<kMax - 1>(rows, f);
  }
  f(RowsConstant<kMax>{});
}

// `rows` in tiles of at most `most` that differ by one row at most.
struct RowTiles {
  int64_t count, rows, larger;  // the first `larger` tiles have rows + 1

  RowTiles(int64_t total, int64_t most)
      : count(ceil_div(total, most)), rows(divide(total, count)), larger(total - rows * count) {}
  int64_t begin(int64_t tile) const { return tile * rows + min_of(tile, larger); }
  int64_t size(int64_t tile) const { return rows + (tile < larger); }
};

constexpr int kWidestTile = 4;  // panels
// Tiles of kPanels panels have at most so many rows; 0: there are no registers for one.
template <typename A, int kPanels>
constexpr int kMostRows = most_tile_rows(kPanels * kPanelVectors<A>, 12);

// Panels of the tiles of a product: wide tiles need fewer instructions a sum, as long as they have
// six rows or all there are.
template <typename A>
constexpr int64_t tile_panels(int64_t rows) {
  const int64_t enough = min_of(rows, 6);
  if (kMostRows<A, 4> >= enough) return 4;
  return kMostRows<A, 2> >= enough ? 2 : 1;
}

// Panels [first, last) of all rows, kPanels at a time as long as there are so many; returns the
// first that is left.
template <Activation kActivation, int kPanels, typename A>
inline int64_t product_tiles(const Product<A>& p, int64_t first, int64_t last, const A* fetch) {
  constexpr int kRows = kMostRows<A, kPanels>;
  const int64_t end = last - (last - first) % kPanels;
  if (first == end) return end;
  const RowTiles tiles(p.rows, kRows);
  const int64_t step = ceil_div(kPanels * kPanel, tiles.count);
  for (int64_t t = 0; t < tiles.count; ++t) {
    dispatch_rows<kRows>(tiles.size(t), [&](auto rows) {
      for (int64_t panel = first; panel < end; panel += kPanels) {
        product_tile<decltype(rows)::value, kPanels, kActivation>(
            p, tiles.begin(t), panel, Fetch<A>{fetch + t * step * p.depth, step});
      }
    });
  }
  return end;
}

// The same of all of them, in tiles of kPanels and then of fewer.
template <Activation kActivation, int kPanels, typename A>
inline void product_panels(const Product<A>& p, int64_t first, int64_t last, const A* fetch) {
  if constexpr (kMostRows<A, kPanels> > 0) {
    if (kPanels <= tile_panels<A>(p.rows)) {
      first = product_tiles<kActivation, kPanels>(p, first, last, fetch);
    }
  }
  if constexpr (kPanels > 1) product_panels<kActivation, kPanels / 2>(p, first, last, fetch);
}

// Panels are used for all rows before the next: as many as stay in the L1 cache, or a tile's width.
// So b is read once from where it comes, and a from L2 once for each group of panels. Deep panels
// stay in L2 meanwhile, and those that come next are fetched there.
constexpr int64_t kPanelGroupBytes = 16 * 1024;

template <Activation kActivation, typename A>
inline void product(const Product<A>& p) {
  const int64_t panel_bytes = p.depth * kPanel * static_cast<int64_t>(sizeof(A));
  const int64_t wide = tile_panels<A>(p.rows), fitting = divide(kPanelGroupBytes, panel_bytes);
  const int64_t group = max_of(wide, fitting - fitting % wide);
  for (int64_t panel = 0; panel < p.panels; panel += group) {
    const int64_t end = panel + group;
    const A* fetch = end < p.panels ? p.b + end * kPanel * p.depth : p.following;
    product_panels<kActivation, kWidestTile>(p, panel, min_of(end, p.panels), fetch);
  }
}

}  // namespace
}  // namespace mobilenet_ext::cpu
