// Depthwise convolution, backward, in one pass: the gradient of the raw output is computed on load
// (activation and BatchNorm backward), the normalised input is recomputed on load, and a row of
// each serves both the weight gradient and, through the flipped kernel, the input gradient.
// The input gradient leaves masked by the prologue's activation, with the sums that the BatchNorm
// in front needs. Traffic: grad_output, output and input read once, grad_input written once.
#pragma once

#include "kernels/cpu/backward_memory.inl.h"
#include "kernels/cpu/depthwise_epilogues.inl.h"
#include "kernels/cpu/depthwise_rows.inl.h"
#include "kernels/cpu/reduce.inl.h"

namespace mobilenet_ext::cpu {
namespace {

// One item: T is the storage type.
template <typename T>
struct BackwardItem {
  using A = Accumulator<T>;
  const DepthwiseConvBackwardArgs& args;
  const ConvShape& s;
  const ConvItem& item;
  BackwardScratch<A>& scratch;
  const BackwardWorkspace<A> workspace{args};
  const ChannelMap<A> prologue{args.prologue, item.channels.begin};
  const ChannelGradient<A> gradient{args.epilogue, args.gradient_map, item.channels.begin};
  const int64_t channels = item.channels.size();
  const Destination destination = map_destination<T>(s, 2, args.grad_input);

  // Element (n, y, 0, first channel of the block) of an NHWC tensor.
  template <typename P>
  P* row_of(P* tensor, int64_t n, int64_t y, int64_t height, int64_t width) const {
    return tensor + (n * height + y) * width * s.channels + item.channels.begin;
  }

  void stage_gradient(int64_t n, int64_t y) const {
    const T* grad =
        row_of(static_cast<const T*>(args.grad_output), n, y, s.out_height, s.out_width);
    const T* raw = args.output
                       ? row_of(static_cast<const T*>(args.output), n, y, s.out_height, s.out_width)
                       : nullptr;
    stage_gradient_row<T, A>(
        {grad, s.out_width, s.channels}, raw, gradient, channels,
        {scratch.gradient.row(y) + scratch.gradient_before * scratch.gradient.stride, s.out_width,
         scratch.gradient.stride});
  }

  void add_weight_gradient(int64_t y) const {
    find_forward_taps(s, y, scratch.sum_columns, scratch.input, scratch.grad_weight,
                      scratch.gradient.stride, scratch.sum_taps);
    const A* grad = scratch.gradient.row(y) + scratch.gradient_before * scratch.gradient.stride;
    accumulate_taps<A>(scratch.sum_taps, whole_vectors<A>(channels),
                       s.stride * scratch.input.stride,
                       {grad, s.out_width, scratch.gradient.stride});
  }

  // The kernel's columns through which output gradients reach input pixels x, x + stride, ...
  void find_backward_columns(int64_t x, TapColumns& columns) const {
    columns.count = 0;
    columns.pixels = ceil_div(s.in_width - x, s.stride);
    for (int64_t kx = 0; kx < s.kernel; ++kx) {
      const int64_t from_x = x + s.pad_left - kx * s.dilation;
      if (from_x % s.stride != 0) continue;
      if (!may_meet(from_x / s.stride, columns.pixels, 1, s.out_width)) continue;
      columns.add(kx, (from_x / s.stride + scratch.gradient_before) * scratch.gradient.stride);
    }
  }

  // The taps through which output gradients reach input row y.
  void find_backward_taps(int64_t y, const TapColumns& columns) const {
    const A* weight = workspace.weight.data + item.channels.begin;
    scratch.taps.count = 0;
    for (int64_t ky = 0; ky < s.kernel; ++ky) {
      const int64_t reach_y = y + s.pad_top - ky * s.dilation;
      if (reach_y < 0) break;
      const int64_t from_y = divide(reach_y, s.stride);
      if (from_y * s.stride != reach_y || from_y >= s.out_height) continue;
      add_taps(columns, static_cast<const A*>(scratch.gradient.row(from_y)),
               weight + ky * s.kernel * workspace.weight.stride, workspace.weight.stride,
               scratch.taps);
    }
  }

  // A row of input gradients at stride 1, a convolution with the kernel turned round, into `to`.
  template <typename Epilogue>
  void convolve_gradient(int64_t y, Row<A> to, const Epilogue& epilogue) const {
    ConvRow<A> row = {};
    row.tap_stride = -workspace.weight.stride;
    row.channels = whole_vectors<A>(channels);
    row.pitch = scratch.gradient.stride;
    row.output = to;
    row.destination = to.data == scratch.grad_input.data ? Destination::kScratch : destination;
    const int64_t first = s.pad_left + scratch.gradient_before - 2;
    const A* weight = workspace.weight.data + item.channels.begin;
    for (int64_t ky = 0; ky < 3; ++ky) {
      const int64_t from_y = y + s.pad_top - ky;
      if (from_y < 0 || from_y >= s.out_height) continue;
      row.add(scratch.gradient.row(from_y) + first * row.pitch,
              weight + (ky * 3 + 2) * workspace.weight.stride);
    }
    convolve_staged_row<1>(row, epilogue);
  }

  // The same by taps, for any kernel and stride.
  void correlate_gradient(int64_t y) const {
    const int64_t stride = scratch.grad_input.stride;
    for (int64_t x = 0; x < column_lists(s); ++x) {
      const TapColumns& columns = scratch.columns[x];
      find_backward_taps(y, columns);
      correlate(scratch.taps, whole_vectors<A>(channels), scratch.gradient.stride,
                Row<A>{scratch.grad_input.data + x * stride, columns.pixels, s.stride * stride});
    }
  }

  void store_input_gradient(int64_t n, int64_t y) const {
    const Row<T> to{row_of(static_cast<T*>(args.grad_input), n, y, s.in_height, s.in_width),
                    s.in_width, s.channels};
    const T* raw = row_of(static_cast<const T*>(args.input), n, y, s.in_height, s.in_width);
    const A* mean = ChannelMap<A>::at(args.input_mean, item.channels.begin);
    const bool has_rows = has_row_kernel(s) && s.stride == 1;
    if constexpr (kIsPlain<T>) {
      if (has_rows && channels % kLanes<A> == 0) {
        if (!prologue.scale) return convolve_gradient(y, to, MapSums<A, Identity<A>>{prologue});
        return dispatch_map(prologue, [&](auto tag) {
          const Row<const A> at{raw, to.pixels, to.stride};
          using Mask = MaskSums<A, typename decltype(tag)::type>;
          convolve_gradient(y, to, Mask{prologue, mean, at, scratch.sums});
        });
      }
    }
    if (has_rows) {
      convolve_gradient(y, scratch.grad_input, MapSums<A, Identity<A>>{prologue});
    } else {
      correlate_gradient(y);
    }
    const Row<A>& row = scratch.grad_input;
    const Row<const A> from{row.data, row.pixels, row.stride};
    if (!args.prologue.scale) return store_row(from, prologue, channels, to, destination);
    store_gradient_row(from, raw, prologue, mean, channels, to, scratch.sums, destination);
  }

  // Input rows [begin, end) belong to the item; their gradients need output rows [first, last].
  void image(int64_t n) const {
    const bool last_band = item.rows.end == s.out_height;
    const Range own{min_of(item.rows.begin * s.stride, s.in_height),
                    last_band ? s.in_height : min_of(item.rows.end * s.stride, s.in_height)};
    const T* input = static_cast<const T*>(args.input) + n * s.in_height * s.in_width * s.channels +
                     item.channels.begin;
    const int64_t reach = kernel_extent(s) - 1;
    int64_t first = item.rows.begin, end = item.rows.end;
    if (args.grad_input && own.size() > 0) {
      first = min_of(first, ceil_div(max_of(0, own.begin + s.pad_top - reach), s.stride));
      end = max_of(end, min_of(s.out_height, (own.end - 1 + s.pad_top) / s.stride + 1));
    }
    int64_t staged = 0, next = own.begin;
    for (int64_t y = first; y < end; ++y) {
      stage_gradient(n, y);
      if (args.grad_weight && y >= item.rows.begin && y < item.rows.end) {
        for (staged = max_of(staged, y * s.stride); staged <= y * s.stride + reach; ++staged) {
          stage_input_row(s, input, staged, prologue, channels, scratch.input);
        }
        add_weight_gradient(y);
      }
      if (!args.grad_input) continue;
      // Rows whose last tap is output row y.
      for (; next < min_of(own.end, (y + 1) * s.stride - s.pad_top); ++next) {
        store_input_gradient(n, next);
      }
    }
    for (; args.grad_input && next < own.end; ++next) store_input_gradient(n, next);
  }

  void run() const {
    scratch.clear(s);
    find_forward_columns(s, scratch.input.stride, scratch.sum_columns);
    for (int64_t x = 0; x < column_lists(s); ++x) {
      find_backward_columns(x, scratch.columns[x]);
    }
    for (int64_t n = item.images.begin; n < item.images.end; ++n) image(n);
    if (destination == Destination::kMemory) finish_stores();
    const int64_t bytes = channels * static_cast<int64_t>(sizeof(A));
    const int64_t taps = s.kernel * s.kernel;
    if (args.grad_weight) {
      for (int64_t t = 0; t < taps; ++t) {
        A* to = workspace.grad_weight + (item.partial * taps + t) * s.channels;
        __builtin_memcpy(to + item.channels.begin,
                         scratch.grad_weight + t * scratch.gradient.stride, bytes);
      }
    }
    if (!args.input_mean) return;
    workspace.input_sums.put(scratch.sums, item.partial, item.channels.begin, channels);
  }
};

inline int64_t backward_workspace_bytes(const DepthwiseConvBackwardArgs& args) {
  return dispatch_accumulator(args.dtype,
                              [&](auto a) { return BackwardWorkspace<decltype(a)>(args).bytes; });
}

inline int64_t backward_scratch_bytes(const DepthwiseConvBackwardArgs& args) {
  const ConvPartition p = backward_partition(args.shape);
  return dispatch_accumulator(args.dtype, [&](auto a) {
    return BackwardScratch<decltype(a)>(args.shape, p, nullptr).arena.bytes();
  });
}

inline int64_t backward_blocks(const DepthwiseConvBackwardArgs& args) {
  return args.grad_input ? backward_partition(args.shape).blocks : 0;
}

inline void backward_pack(const DepthwiseConvBackwardArgs& args, int64_t begin, int64_t end,
                          void*) {
  const ConvPartition p = backward_partition(args.shape);
  dispatch_dtype(args.dtype, [&](auto t) {
    using T = decltype(t);
    const BackwardWorkspace<Accumulator<T>> workspace(args);
    for (int64_t b = begin; b < end; ++b) {
      pack_weight<T>(args, chunk(b, p.channels, args.shape.channels), workspace.weight);
    }
  });
}

inline int64_t backward_items(const DepthwiseConvBackwardArgs& args) {
  return backward_partition(args.shape).items();
}

inline void backward_run(const DepthwiseConvBackwardArgs& args, int64_t begin, int64_t end,
                         void* scratch) {
  const ConvPartition p = backward_partition(args.shape);
  dispatch_dtype(args.dtype, [&](auto t) {
    using T = decltype(t);
    BackwardScratch<Accumulator<T>> memory(args.shape, p, scratch);
    for (int64_t i = begin; i < end; ++i) {
      const ConvItem item = conv_item(args.shape, p, i);
      BackwardItem<T>{args, args.shape, item, memory}.run();
    }
  });
}

inline int64_t backward_merges(const DepthwiseConvBackwardArgs& args) {
  return args.grad_weight || args.input_mean ? merge_items(args.shape.channels) : 0;
}

inline void backward_merge(const DepthwiseConvBackwardArgs& args, int64_t begin, int64_t end,
                           void*) {
  const ConvShape& s = args.shape;
  const int64_t partials = backward_partition(s).partials();
  const int64_t taps = s.kernel * s.kernel;
  dispatch_dtype(args.dtype, [&](auto tag) {
    using T = decltype(tag);
    using A = Accumulator<T>;
    const BackwardWorkspace<A> from(args);
    for_each_merged(begin, end, s.channels, [&](Range part) {
      for (int64_t t = 0; args.grad_weight && t < taps; ++t) {
        const MergedSums sums(from.grad_weight + t * s.channels + part.begin, partials,
                              taps * s.channels, part.size());
        T* to = static_cast<T*>(args.grad_weight) + part.begin * taps + t;
        for (int64_t c = 0; c < part.size(); ++c) {
          store(to + c * taps, Vec<A>{} + static_cast<A>(sums.total[c]), FirstLanes{1});
        }
      }
      if (args.input_mean) from.input_sums.template merge<A>(part, args.grad_sum, args.grad_dot);
    });
  });
}

constexpr Op<DepthwiseConvBackwardArgs> kDepthwiseConvBackward = {
    backward_workspace_bytes,
    backward_scratch_bytes,
    {{backward_blocks, backward_pack},
     {backward_items, backward_run},
     {backward_merges, backward_merge}},
};

}  // namespace
}  // namespace mobilenet_ext::cpu
