// BatchNorm's passes over a [pixels, C] matrix: statistics, normalise with activation, the two sums
// of the backward, and the backward itself. Each reads every tensor once; an item owns a run of
// pixels and all channels.
#pragma once

#include "kernels/cpu/reduce.inl.h"

namespace mobilenet_ext::cpu {
namespace {

// [pixels, C] from the first pixel of item `index` on.
template <typename T, typename Args>
inline Row<T> item_row(const Args& args, T* tensor, int64_t index) {
  const PixelPartition p = partition_pixels(args.pixels, args.channels);
  const Range pixels = chunk(index, p.pixels, args.pixels);
  return {tensor + pixels.begin * args.channels, pixels.size(), args.channels};
}

template <typename Args>
inline int64_t pixel_items(const Args& args) {
  return partition_pixels(args.pixels, args.channels).items;
}

template <typename Args>
inline int64_t channel_merges(const Args& args) {
  return merge_items(args.channels);
}

template <typename Args>
inline int64_t no_bytes(const Args&) {
  return 0;
}

// Both reductions keep two partial results per item, [items, C] each.
struct PartialPair {
  double* first;
  double* second;
  int64_t items, channels, bytes;

  template <typename Args>
  explicit PartialPair(const Args& args) : items(pixel_items(args)), channels(args.channels) {
    Arena arena(args.workspace);
    first = arena.take<double>(items * channels);
    second = arena.take<double>(items * channels);
    bytes = arena.bytes();
  }
  PartialSums sums() const { return {first, second, items, channels}; }
};

template <typename Args>
inline int64_t pair_bytes(const Args& args) {
  return PartialPair(args).bytes;
}

// What both reductions accumulate in; only the statistics need a shift.
template <typename A>
struct ReductionScratch {
  Arena arena;
  Moments<A> moments;

  ReductionScratch(int64_t channels, void* scratch)
      : arena(scratch),
        moments{arena.take<A>(round_up(channels, kLanes<A>)), ChannelSums<A>(channels, arena)} {}
};

template <typename Args>
inline int64_t reduction_scratch_bytes(const Args& args) {
  return dispatch_accumulator(args.dtype, [&](auto a) {
    return ReductionScratch<decltype(a)>(args.channels, nullptr).arena.bytes();
  });
}

inline void statistics_run(const BatchNormStatisticsArgs& args, int64_t begin, int64_t end,
                           void* scratch) {
  dispatch_dtype(args.dtype, [&](auto t) {
    using T = decltype(t);
    Moments<Accumulator<T>> moments =
        ReductionScratch<Accumulator<T>>(args.channels, scratch).moments;
    const PartialPair partial(args);
    for (int64_t i = begin; i < end; ++i) {
      const Row<const T> row = item_row(args, static_cast<const T*>(args.input), i);
      start_moments(row.data, args.channels, moments);
      add_moments(row, args.channels, moments);
      finish_moments(moments, args.channels, row.pixels,
                     PartialMoments{partial.first, partial.second, 0}, i * args.channels);
    }
  });
}

inline void statistics_merge(const BatchNormStatisticsArgs& args, int64_t begin, int64_t end,
                             void*) {
  const PixelPartition p = partition_pixels(args.pixels, args.channels);
  const PartialPair partial(args);
  dispatch_accumulator(args.dtype, [&](auto a) {
    using A = decltype(a);
    merge_moments(
        PartialMoments{partial.first, partial.second, p.items}, args.channels, begin, end,
        [&](int64_t i) { return chunk(i, p.pixels, args.pixels).size(); },
        static_cast<A*>(args.mean), static_cast<A*>(args.var));
  });
}

inline void scale_shift_act_run(const ScaleShiftActArgs& args, int64_t begin, int64_t end, void*) {
  dispatch_dtype(args.dtype, [&](auto t) {
    using T = decltype(t);
    using A = Accumulator<T>;
    const ChannelMap<A> params(args.map, 0);
    dispatch_map(params, [&](auto tag) {
      for (int64_t i = begin; i < end; ++i) {
        const Row<const T> from = item_row(args, static_cast<const T*>(args.input), i);
        const Row<T> to = item_row(args, static_cast<T*>(args.output), i);
        for_each_tile<A>({0, from.pixels}, args.channels, [&](Range tile, int64_t c, auto lanes) {
          const typename decltype(tag)::type map(params, c, lanes);
          for (int64_t p = tile.begin; p < tile.end; ++p) {
            const int64_t at = p * args.channels + c;
            store(to.data + at, map(load(from.data + at, lanes)), lanes);
          }
        });
      }
    });
  });
}

inline void reduce_run(const ScaleShiftActBackwardReduceArgs& args, int64_t begin, int64_t end,
                       void* scratch) {
  dispatch_dtype(args.dtype, [&](auto t) {
    using T = decltype(t);
    using A = Accumulator<T>;
    const ChannelMap<A> params(args.map, 0);
    ChannelSums<A> sums = ReductionScratch<A>(args.channels, scratch).moments.sums;
    const PartialSums partial = PartialPair(args).sums();
    for (int64_t i = begin; i < end; ++i) {
      const Row<const T> grad = item_row(args, static_cast<const T*>(args.grad_output), i);
      const Row<const T> x = item_row(args, static_cast<const T*>(args.input), i);
      sums.clear();
      add_gradients(grad, x.data, params, static_cast<const A*>(args.mean), args.channels, sums);
      partial.put(sums, i, 0, args.channels);
    }
  });
}

inline void reduce_merge(const ScaleShiftActBackwardReduceArgs& args, int64_t begin, int64_t end,
                         void*) {
  const PartialSums from = PartialPair(args).sums();
  dispatch_accumulator(args.dtype, [&](auto a) {
    for_each_merged(begin, end, args.channels, [&](Range part) {
      from.merge<decltype(a)>(part, args.grad_sum, args.grad_dot);
    });
  });
}

inline void backward_map_run(const ScaleShiftActBackwardArgs& args, int64_t begin, int64_t end,
                             void*) {
  dispatch_dtype(args.dtype, [&](auto t) {
    using T = decltype(t);
    using A = Accumulator<T>;
    const ChannelGradient<A> params(args.map, args.gradient_map, 0);
    dispatch_gradient(params, [&](auto tag) {
      for (int64_t i = begin; i < end; ++i) {
        const Row<const T> grad = item_row(args, static_cast<const T*>(args.grad_output), i);
        const Row<const T> x = item_row(args, static_cast<const T*>(args.input), i);
        const Row<T> to = item_row(args, static_cast<T*>(args.grad_input), i);
        for_each_tile<A>({0, x.pixels}, args.channels, [&](Range tile, int64_t c, auto lanes) {
          const typename decltype(tag)::type raw_gradient(params, c, lanes);
          for (int64_t p = tile.begin; p < tile.end; ++p) {
            const int64_t at = p * args.channels + c;
            store(to.data + at, raw_gradient(load(grad.data + at, lanes), load(x.data + at, lanes)),
                  lanes);
          }
        });
      }
    });
  });
}

constexpr Op<BatchNormStatisticsArgs> kBatchNormStatistics = {
    pair_bytes,
    reduction_scratch_bytes,
    {{pixel_items, statistics_run}, {channel_merges, statistics_merge}},
};

constexpr Op<ScaleShiftActArgs> kScaleShiftAct = {
    no_bytes, no_bytes, {{pixel_items, scale_shift_act_run}}};

constexpr Op<ScaleShiftActBackwardReduceArgs> kScaleShiftActBackwardReduce = {
    pair_bytes,
    reduction_scratch_bytes,
    {{pixel_items, reduce_run}, {channel_merges, reduce_merge}}};

constexpr Op<ScaleShiftActBackwardArgs> kScaleShiftActBackward = {
    no_bytes, no_bytes, {{pixel_items, backward_map_run}}};

}  // namespace
}  // namespace mobilenet_ext::cpu
