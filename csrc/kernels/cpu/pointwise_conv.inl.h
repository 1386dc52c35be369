// Pointwise convolution, forward: act(x * scale + shift) on load, multiply, then store raw with
// statistics, or act(y * scale + shift). A tile of pixels is normalised into the L2 cache and meets
// the packed weights there; the statistics are counted while the tile's output is still in a cache.
// Or the pixels are the patches of an image: then it is any dense convolution.
#pragma once

#include "kernels/cpu/patches.inl.h"
#include "kernels/cpu/pointwise_tiles.inl.h"
#include "kernels/cpu/reduce.inl.h"

namespace mobilenet_ext::cpu {
namespace {

inline ProductPartition pointwise_partition(const PointwiseConvArgs& args) {
  const PointwiseShape& s = args.shape;
  return partition_product(s.pixels, s.in_channels, s.out_channels, accumulator_bytes(args.dtype));
}

template <typename A>
struct PointwiseWorkspace {
  A* weight;  // panels of [C', C]
  PartialMoments moments;
  int64_t bytes;

  explicit PointwiseWorkspace(const PointwiseConvArgs& args) {
    const PointwiseShape& s = args.shape;
    Arena arena(args.workspace);
    weight = arena.take<A>(round_to_panels(s.out_channels) * s.in_channels);
    moments.partials = pointwise_partition(args).ranges;
    const int64_t size = args.mean ? moments.partials * s.out_channels : 0;
    moments.mean = arena.take<double>(size);
    moments.m2 = arena.take<double>(size);
    bytes = arena.bytes();
  }
};

template <typename A>
struct PointwiseScratch {
  Arena arena;
  Moments<A> moments;
  Row<A> input, output;  // a tile of each
  StagedPixels staged;   // in `input`
  PatchRows<A> rows;

  PointwiseScratch(const PointwiseConvArgs& args, const ProductPartition& p, void* scratch)
      : arena(scratch),
        moments{arena.take<A>(p.columns), ChannelSums<A>(p.columns, arena)},
        input(staged_patches<A>(args.shape.in_channels, p.tile, arena)),
        rows(args.patches, arena) {
    const int64_t out_pitch = row_pitch(p.columns);
    output = {arena.take<A>(p.tile * out_pitch), p.tile, out_pitch};
  }
};

// The tile's pixels, normalised; in place where there is nothing to do.
template <typename T, typename A = Accumulator<T>>
inline Row<const A> stage_tile(const PointwiseConvArgs& args, Range pixels,
                               PointwiseScratch<A>& scratch) {
  const int64_t channels = args.shape.in_channels;
  const T* input = static_cast<const T*>(args.input);
  if (has_patches(args.patches)) {
    if (scratch.staged.replace(pixels)) {
      stage_patches(args.patches, input, pixels, scratch.rows, scratch.input);
    }
    return {scratch.input.data, pixels.size(), scratch.input.stride};
  }
  const Row<const T> from = map_row(input, pixels, channels, 0);
  if constexpr (kIsPlain<T>) {
    if (!args.prologue.scale) return from;
  }
  if (scratch.staged.replace(pixels)) {
    stage_row(from, ChannelMap<A>(args.prologue, 0), channels, scratch.input);
  }
  return {scratch.input.data, from.pixels, scratch.input.stride};
}

template <typename T>
inline void pointwise_item(const PointwiseConvArgs& args, const ProductPartition& p,
                           const ProductItem& item, PointwiseScratch<Accumulator<T>>& scratch) {
  using A = Accumulator<T>;
  const PointwiseShape& s = args.shape;
  const PointwiseWorkspace<A> workspace(args);
  const int64_t columns = item.columns.size();
  const ChannelMap<A> epilogue(args.epilogue, item.columns.begin);
  const bool in_place = kIsPlain<T> && !args.epilogue.scale && columns % kPanel == 0;
  for_each_staged(item.pixels, p.tile, [&](Range pixels) {
    const Row<const A> a = stage_tile<T>(args, pixels, scratch);
    const Row<T> to =
        map_row(static_cast<T*>(args.output), pixels, s.out_channels, item.columns.begin);
    Row<A> c = scratch.output;
    if constexpr (kIsPlain<T>) {
      if (in_place) c = to;
    }
    multiply(a, s.in_channels, workspace.weight, item.columns, c);
    if (!in_place) store_row<T, A>({c.data, to.pixels, c.stride}, epilogue, columns, to);
    if (!args.mean) return;
    if (pixels.begin == item.pixels.begin) start_moments(to.data, columns, scratch.moments);
    add_moments<T>({to.data, to.pixels, to.stride}, columns, scratch.moments);
  });
  if (!args.mean) return;
  finish_moments(scratch.moments, columns, item.pixels.size(), workspace.moments,
                 item.range * s.out_channels + item.columns.begin);
}

inline int64_t pointwise_workspace_bytes(const PointwiseConvArgs& args) {
  return dispatch_accumulator(args.dtype,
                              [&](auto a) { return PointwiseWorkspace<decltype(a)>(args).bytes; });
}

inline int64_t pointwise_scratch_bytes(const PointwiseConvArgs& args) {
  return dispatch_accumulator(args.dtype, [&](auto a) {
    return PointwiseScratch<decltype(a)>(args, pointwise_partition(args), nullptr).arena.bytes();
  });
}

inline int64_t pointwise_panels(const PointwiseConvArgs& args) {
  return ceil_div(args.shape.out_channels, kPanel);
}

inline void pointwise_pack(const PointwiseConvArgs& args, int64_t begin, int64_t end, void*) {
  const PointwiseWeight& w = args.weight;
  dispatch_dtype(args.dtype, [&](auto t) {
    using T = decltype(t);
    const MatrixView<T> matrix{static_cast<const T*>(w.data), w.out_stride, w.in_stride,
                               args.shape.out_channels, args.shape.in_channels};
    pack_panels(matrix, begin, end, PointwiseWorkspace<Accumulator<T>>(args).weight);
  });
}

inline int64_t pointwise_items(const PointwiseConvArgs& args) {
  return pointwise_partition(args).items();
}

inline void pointwise_run(const PointwiseConvArgs& args, int64_t begin, int64_t end,
                          void* scratch) {
  const ProductPartition p = pointwise_partition(args);
  dispatch_dtype(args.dtype, [&](auto t) {
    using T = decltype(t);
    PointwiseScratch<Accumulator<T>> memory(args, p, scratch);
    for (int64_t i = begin; i < end; ++i) {
      pointwise_item<T>(args, p, product_item(p, i, args.shape.pixels, args.shape.out_channels),
                        memory);
    }
  });
}

inline int64_t pointwise_merges(const PointwiseConvArgs& args) {
  return args.mean ? merge_items(args.shape.out_channels) : 0;
}

inline void pointwise_merge(const PointwiseConvArgs& args, int64_t begin, int64_t end, void*) {
  const PointwiseShape& s = args.shape;
  const ProductPartition p = pointwise_partition(args);
  dispatch_accumulator(args.dtype, [&](auto a) {
    using A = decltype(a);
    merge_moments(
        PointwiseWorkspace<A>(args).moments, s.out_channels, begin, end,
        [&](int64_t range) { return chunk(range, p.pixels, s.pixels).size(); },
        static_cast<A*>(args.mean), static_cast<A*>(args.var));
  });
}

constexpr Op<PointwiseConvArgs> kPointwiseConv = {pointwise_workspace_bytes,
                                                  pointwise_scratch_bytes,
                                                  {{pointwise_panels, pointwise_pack},
                                                   {pointwise_items, pointwise_run},
                                                   {pointwise_merges, pointwise_merge}}};

}  // namespace
}  // namespace mobilenet_ext::cpu
