// Depthwise convolution, forward: act(x * scale + shift) on load, convolve, then store raw with
// statistics, or act(y * scale + shift). NHWC. An item owns a block of channels in a band of output
// rows of some images; it streams their input rows through a ring, so the input is read once, the
// output written once, and every arithmetic loop runs on L1/L2 data without a border case.
#pragma once

#include "kernels/cpu/conv_rows.inl.h"
#include "kernels/cpu/reduce.inl.h"

namespace mobilenet_ext::cpu {
namespace {

inline ConvPartition forward_partition(const ConvShape& s) {
  return partition_conv(s, kernel_extent(s) * input_ring_pixels(s));
}

template <typename A>
struct ForwardWorkspace {
  PackedWeight<A> weight;
  PartialMoments moments;
  int64_t bytes;

  explicit ForwardWorkspace(const DepthwiseConvArgs& args) {
    const ConvPartition p = forward_partition(args.shape);
    Arena arena(args.workspace);
    weight.stride = p.blocks * p.channels;
    weight.data = arena.take<A>(args.shape.kernel * args.shape.kernel * weight.stride);
    moments.partials = p.partials();
    const int64_t size = args.mean ? moments.partials * args.shape.channels : 0;
    moments.mean = arena.take<double>(size);
    moments.m2 = arena.take<double>(size);
    bytes = arena.bytes();
  }
};

template <typename A>
struct ForwardScratch {
  Arena arena;
  Moments<A> moments;
  Ring<A> ring;
  Row<A> raw;  // one output row before the epilogue
  TapColumns columns;
  Taps<A> taps;

  ForwardScratch(const ConvShape& s, const ConvPartition& p, void* scratch)
      : arena(scratch),
        moments{arena.take<A>(p.channels), ChannelSums<A>(p.channels, arena)},
        ring(kernel_extent(s), input_ring_pixels(s), ring_stride(p.channels), arena),
        raw{arena.take<A>(s.out_width * ring.stride), s.out_width, ring.stride},
        columns(s.kernel, arena),
        taps(s.kernel * s.kernel, arena) {}
};

// A row of outputs from the taps, stored and counted: at once, where nothing comes in between.
template <typename T, typename A = Accumulator<T>>
inline void convolve_row(const DepthwiseConvArgs& args, const ChannelMap<A>& epilogue,
                         int64_t channels, Row<T> to, bool first, ForwardScratch<A>& scratch) {
  const int64_t step = args.shape.stride * scratch.ring.stride;
  if constexpr (kIsPlain<T>) {
    if (!epilogue.scale && channels % kLanes<A> == 0) {
      if (!args.mean) return correlate(scratch.taps, channels, step, to);
      if (!first) return correlate(scratch.taps, channels, step, to, scratch.moments);
    }
  }
  correlate(scratch.taps, whole_vectors<A>(channels), step, scratch.raw);
  store_row<T, A>({scratch.raw.data, to.pixels, scratch.raw.stride}, epilogue, channels, to);
  if (!args.mean) return;
  if (first) start_moments(to.data, channels, scratch.moments);
  add_moments<T>({to.data, to.pixels, to.stride}, channels, scratch.moments);
}

template <typename T>
inline void forward_item(const DepthwiseConvArgs& args, const ConvItem& item,
                         ForwardScratch<Accumulator<T>>& scratch) {
  using A = Accumulator<T>;
  const ConvShape& s = args.shape;
  const ForwardWorkspace<A> workspace(args);
  const int64_t channels = item.channels.size();
  const ChannelMap<A> prologue(args.prologue, item.channels.begin);
  const ChannelMap<A> epilogue(args.epilogue, item.channels.begin);
  const A* weight = workspace.weight.data + item.channels.begin;
  scratch.ring.clear();
  find_forward_columns(s, scratch.ring.stride, scratch.columns);
  bool first = true;
  for (int64_t n = item.images.begin; n < item.images.end; ++n) {
    const T* image = static_cast<const T*>(args.input) + n * s.in_height * s.in_width * s.channels +
                     item.channels.begin;
    int64_t staged = 0;  // the padded row to stage next
    for (int64_t y = item.rows.begin; y < item.rows.end; ++y) {
      const int64_t end = y * s.stride + kernel_extent(s);
      for (staged = max_of(staged, y * s.stride); staged < end; ++staged) {
        stage_input_row(s, image, staged, prologue, channels, scratch.ring);
      }
      find_forward_taps(s, y, scratch.columns, scratch.ring, weight, workspace.weight.stride,
                        scratch.taps);
      T* row = static_cast<T*>(args.output) + (n * s.out_height + y) * s.out_width * s.channels +
               item.channels.begin;
      convolve_row<T>(args, epilogue, channels, {row, s.out_width, s.channels}, first, scratch);
      first = false;
    }
  }
  if (!args.mean) return;
  const int64_t at = item.partial * s.channels + item.channels.begin;
  const int64_t count = item.images.size() * item.rows.size() * s.out_width;
  finish_moments(scratch.moments, channels, count, workspace.moments, at);
}

inline int64_t forward_workspace_bytes(const DepthwiseConvArgs& args) {
  return dispatch_accumulator(args.dtype,
                              [&](auto a) { return ForwardWorkspace<decltype(a)>(args).bytes; });
}

inline int64_t forward_scratch_bytes(const DepthwiseConvArgs& args) {
  return dispatch_accumulator(args.dtype, [&](auto a) {
    return ForwardScratch<decltype(a)>(args.shape, forward_partition(args.shape), nullptr)
        .arena.bytes();
  });
}

inline int64_t forward_blocks(const DepthwiseConvArgs& args) {
  return forward_partition(args.shape).blocks;
}

inline void forward_pack(const DepthwiseConvArgs& args, int64_t begin, int64_t end, void*) {
  const ConvPartition p = forward_partition(args.shape);
  dispatch_dtype(args.dtype, [&](auto t) {
    using T = decltype(t);
    const ForwardWorkspace<Accumulator<T>> workspace(args);
    for (int64_t b = begin; b < end; ++b) {
      pack_weight<T>(args, chunk(b, p.channels, args.shape.channels), workspace.weight);
    }
  });
}

inline int64_t forward_items(const DepthwiseConvArgs& args) {
  return forward_partition(args.shape).items();
}

inline void forward_run(const DepthwiseConvArgs& args, int64_t begin, int64_t end, void* scratch) {
  const ConvPartition p = forward_partition(args.shape);
  dispatch_dtype(args.dtype, [&](auto t) {
    using T = decltype(t);
    ForwardScratch<Accumulator<T>> memory(args.shape, p, scratch);
    for (int64_t i = begin; i < end; ++i) {
      forward_item<T>(args, conv_item(args.shape, p, i), memory);
    }
  });
}

inline int64_t forward_merges(const DepthwiseConvArgs& args) {
  return args.mean ? merge_items(args.shape.channels) : 0;
}

inline void forward_merge(const DepthwiseConvArgs& args, int64_t begin, int64_t end, void*) {
  const ConvShape& s = args.shape;
  const ConvPartition p = forward_partition(s);
  dispatch_accumulator(args.dtype, [&](auto a) {
    using A = decltype(a);
    const ForwardWorkspace<A> workspace(args);
    const auto count_of = [&](int64_t partial) {
      const ConvItem item = conv_item(s, p, partial * p.blocks);
      return item.images.size() * item.rows.size() * s.out_width;
    };
    merge_moments(workspace.moments, s.channels, begin, end, count_of, static_cast<A*>(args.mean),
                  static_cast<A*>(args.var));
  });
}

constexpr Op<DepthwiseConvArgs> kDepthwiseConv = {
    forward_workspace_bytes,
    forward_scratch_bytes,
    {{forward_blocks, forward_pack}, {forward_items, forward_run}, {forward_merges, forward_merge}},
};

}  // namespace
}  // namespace mobilenet_ext::cpu
