// The memory of the backward depthwise convolution: the ring of staged gradients beside the ring of
// inputs, what an item accumulates, and the partial results of all items.
#pragma once

#include "kernels/cpu/conv_rows.inl.h"
#include "kernels/cpu/reduce.inl.h"

namespace mobilenet_ext::cpu {
namespace {

// The ring of raw-output gradients: the rows and pixels that reach one row of inputs, with zero
// pixels on the left (`before`) and right for taps that fall outside.
struct GradientRingShape {
  int64_t rows, before, pixels;
};

inline GradientRingShape gradient_ring_shape(const ConvShape& s) {
  const int64_t reach = kernel_extent(s) - 1;
  const int64_t before = max_of(0, ceil_div(max_of(0, reach - s.pad_left), s.stride));
  const int64_t last = (s.in_width - 1 + s.pad_left) / s.stride;
  return {reach / s.stride + 1, before, before + max_of(s.out_width, last + 1)};
}

// Input pixels x, x + stride, ... meet the same columns of the kernel: so many lists of them.
inline int64_t column_lists(const ConvShape& s) { return min_of(s.stride, s.in_width); }

inline ConvPartition backward_partition(const ConvShape& s) {
  const GradientRingShape gradient = gradient_ring_shape(s);
  return partition_conv(
      s, kernel_extent(s) * input_ring_pixels(s) + gradient.rows * gradient.pixels + s.in_width);
}

template <typename A>
struct BackwardWorkspace {
  PackedWeight<A> weight;
  A* grad_weight;  // [partials, K * K, C]
  PartialSums input_sums;
  int64_t bytes;

  explicit BackwardWorkspace(const DepthwiseConvBackwardArgs& args) {
    const ConvPartition p = backward_partition(args.shape);
    const int64_t taps = args.shape.kernel * args.shape.kernel;
    const int64_t partial_channels = p.partials() * args.shape.channels;
    Arena arena(args.workspace);
    weight.stride = p.blocks * p.channels;
    weight.data = arena.take<A>(args.grad_input ? taps * weight.stride : 0);
    grad_weight = arena.take<A>(args.grad_weight ? taps * partial_channels : 0);
    const int64_t sums = args.input_mean ? partial_channels : 0;
    input_sums = {arena.take<double>(sums), arena.take<double>(sums), p.partials(),
                  args.shape.channels};
    bytes = arena.bytes();
  }
};

template <typename A>
struct BackwardScratch {
  Arena arena;
  ChannelSums<A> sums;  // of grad_input
  Ring<A> input, gradient;
  int64_t gradient_before;
  Row<A> grad_input;       // one row before the mask
  A* grad_weight;          // [K * K, channels of the block]
  TapColumns* columns;     // of an input gradient: [column_lists]
  Taps<A> taps;            // of an input gradient
  TapColumns sum_columns;  // of the weight gradients
  Taps<A, A> sum_taps;     // of the weight gradients

  BackwardScratch(const ConvShape& s, const ConvPartition& p, void* scratch)
      : BackwardScratch(s, gradient_ring_shape(s), ring_stride(p.channels), p.channels, scratch) {}

  void clear(const ConvShape& s) {
    input.clear();
    gradient.clear();
    __builtin_memset(grad_weight, 0, s.kernel * s.kernel * gradient.stride * sizeof(A));
    sums.clear();
  }

 private:
  BackwardScratch(const ConvShape& s, const GradientRingShape& shape, int64_t stride,
                  int64_t channels, void* scratch)
      : arena(scratch),
        sums(channels, arena),
        input(kernel_extent(s), input_ring_pixels(s), stride, arena),
        gradient(shape.rows, shape.pixels, stride, arena),
        gradient_before(shape.before),
        grad_input{arena.take<A>(s.in_width * stride), s.in_width, stride},
        grad_weight(arena.take<A>(s.kernel * s.kernel * stride)),
        columns(arena.take<TapColumns>(column_lists(s))),
        taps(s.kernel * s.kernel, arena),
        sum_columns(s.kernel, arena),
        sum_taps(s.kernel * s.kernel, arena) {
    for (int64_t x = 0; x < column_lists(s); ++x) {
      const TapColumns taken(s.kernel, arena);
      if (columns) columns[x] = taken;
    }
  }
};

}  // namespace
}  // namespace mobilenet_ext::cpu
