// Depthwise convolution, forward: act(x * scale + shift) on load, convolve, then store raw with
// statistics, or act(y * scale + shift). NHWC. An item owns a block of channels in a band of output
// rows of some images. Long rows that nothing happens to on load are read in place; others stream
// through a ring. So the input is read from memory once, the output written once, and every
// arithmetic loop runs on L1/L2 data.
#pragma once

#include "kernels/cpu/conv_rows.inl.h"
#include "kernels/cpu/depthwise_epilogues.inl.h"
#include "kernels/cpu/depthwise_rows.inl.h"
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
  ConvRow<A> row{};
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

// One item: T is the storage type.
template <typename T>
struct ForwardItem {
  using A = Accumulator<T>;
  const DepthwiseConvArgs& args;
  const ConvShape& s;
  const ConvItem& item;
  ForwardScratch<A>& scratch;
  const ForwardWorkspace<A> workspace{args};
  const ChannelMap<A> prologue{args.prologue, item.channels.begin};
  const ChannelMap<A> epilogue{args.epilogue, item.channels.begin};
  const int64_t channels = item.channels.size();
  const A* const weight = workspace.weight.data + item.channels.begin;
  const bool has_rows = has_row_kernel(s), is_whole = channels % kLanes<A> == 0;
  const Range inner = inner_outputs(s);
  // Staging reads memory in order, which is as good where a row meets few others (stride 2), and
  // leaves no borders, which count in short rows, as does what a strip's counting takes.
  const int64_t least = (args.mean ? 4 : 1) * kStrip;
  const Destination destination = map_destination<T>(s, 1, args.output);
  const bool in_place = kIsPlain<T> && has_rows && is_whole && !args.prologue.scale &&
                        s.stride == 1 && inner.size() >= least;

  // Padded row r of the image at `image`, staged already where that is needed.
  const A* row_at(const T* image, int64_t r) const {
    if constexpr (kIsPlain<T>) {
      if (in_place) return image + (r - s.pad_top) * s.in_width * s.channels;
    }
    return scratch.ring.row(r);
  }

  // Makes ready for output row `y`.
  void find_taps(const T* image, int64_t y) const {
    const int64_t stride = workspace.weight.stride;
    if (!has_rows) {
      return find_forward_taps(s, y, scratch.columns, scratch.ring, weight, stride, scratch.taps);
    }
    ConvRow<A>& row = scratch.row;
    row.tap_stride = stride;
    row.channels = whole_vectors<A>(channels);
    row.pitch = in_place ? s.channels : scratch.ring.stride;
    row.tap_rows = 0;
    const int64_t top = y * s.stride;
    for (int64_t ky = 0; ky < 3; ++ky) {
      if (!may_meet(top + ky - s.pad_top, 1, 1, s.in_height)) continue;
      row.add(row_at(image, top + ky), weight + ky * 3 * stride);
    }
    const int64_t fresh = y == item.rows.begin ? 3 : 1;
    row.unread = in_place ? min_of(fresh, row.tap_rows) : 0;
  }

  template <typename Epilogue>
  void convolve_to(Row<A> to, Destination kind, const Epilogue& sums) const {
    scratch.row.output = to;
    scratch.row.destination = kind;
    if (in_place) return convolve_map_row<1>(s, scratch.row, inner, sums);
    if (s.stride == 1) return convolve_staged_row<1>(scratch.row, sums);
    return convolve_staged_row<2>(scratch.row, sums);
  }

  // A row of outputs, stored and counted: at once, in whole vectors of 3 x 3.
  void convolve_row(Row<T> to, bool first) const {
    if constexpr (kIsPlain<T>) {
      if (has_rows && is_whole && !(args.mean && first)) {
        if (args.mean) return convolve_to(to, destination, CountSums<A>{scratch.moments});
        return dispatch_map(epilogue, [&](auto tag) {
          convolve_to(to, destination, MapSums<A, typename decltype(tag)::type>{epilogue});
        });
      }
    }
    const Row<A> raw{scratch.raw.data, to.pixels, scratch.raw.stride};
    if (has_rows) {
      convolve_to(raw, Destination::kScratch, MapSums<A, Identity<A>>{epilogue});
    } else {
      correlate(scratch.taps, whole_vectors<A>(channels), s.stride * scratch.ring.stride, raw);
    }
    store_row<T, A>({raw.data, raw.pixels, raw.stride}, epilogue, channels, to);
    if (!args.mean) return;
    if (first) start_moments(to.data, channels, scratch.moments);
    add_moments<T>({to.data, to.pixels, to.stride}, channels, scratch.moments);
  }

  void run() const {
    if (!in_place) scratch.ring.clear();
    find_forward_columns(s, scratch.ring.stride, scratch.columns);
    bool first = true;
    for (int64_t n = item.images.begin; n < item.images.end; ++n) {
      const T* image = static_cast<const T*>(args.input) +
                       n * s.in_height * s.in_width * s.channels + item.channels.begin;
      int64_t staged = 0;  // the padded row to stage next
      for (int64_t y = item.rows.begin; y < item.rows.end; ++y) {
        const int64_t end = y * s.stride + kernel_extent(s);
        for (staged = max_of(staged, y * s.stride); !in_place && staged < end; ++staged) {
          stage_input_row(s, image, staged, prologue, channels, scratch.ring);
        }
        find_taps(image, y);
        T* row = static_cast<T*>(args.output) + (n * s.out_height + y) * s.out_width * s.channels +
                 item.channels.begin;
        convolve_row({row, s.out_width, s.channels}, first);
        first = false;
      }
    }
    if (destination == Destination::kMemory) finish_stores();
    if (!args.mean) return;
    const int64_t at = item.partial * s.channels + item.channels.begin;
    const int64_t count = item.images.size() * item.rows.size() * s.out_width;
    finish_moments(scratch.moments, channels, count, workspace.moments, at);
  }
};

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
      const ConvItem item = conv_item(args.shape, p, i);
      ForwardItem<T>{args, args.shape, item, memory}.run();
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
