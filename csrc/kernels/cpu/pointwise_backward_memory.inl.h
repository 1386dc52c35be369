// How the backward pointwise convolution is divided, and its memory: partial sums of all items, and
// what each thread stages.
#pragma once

#include "kernels/cpu/pointwise_tiles.inl.h"
#include "kernels/cpu/reduce.inl.h"

namespace mobilenet_ext::cpu {
namespace {

// A panel of each operand of the weight's product lies in the L1 cache.
constexpr int64_t kMaxPanelPixels = 192;
// All partial sums of the weight's gradient.
constexpr int64_t kPartialWeightBytes = 8 * 1024 * 1024;
// Adding a partial sum to the others takes as long as some 16 multiply-adds.
constexpr int64_t kMinGradWeightPixels = 128;
constexpr int64_t kMinWeightShareColumns = 128;
// More would stage pixels more often, or merge more partial sums.
constexpr int64_t kMaxGradWeightItems = 32;

// Of the input's gradient: its columns are input channels.
inline ProductPartition grad_input_partition(const PointwiseConvBackwardArgs& args) {
  const PointwiseShape& s = args.shape;
  return partition_product(s.pixels, s.out_channels, s.in_channels, accumulator_bytes(args.dtype));
}

// Of the weight's gradient: its columns are output channels, its sums run over a range of pixels.
inline ProductPartition grad_weight_partition(const PointwiseConvBackwardArgs& args) {
  const PointwiseShape& s = args.shape;
  const int64_t bytes = accumulator_bytes(args.dtype);
  const int64_t products = s.pixels * s.in_channels * s.out_channels;
  const int64_t wanted = max_of(1, min_of(kMaxGradWeightItems, products / kItemProducts));
  const int64_t partial = round_to_panels(s.out_channels) * row_pitch(s.in_channels) * bytes;
  ProductPartition p;
  p.shares = min_of(ceil_div(s.out_channels, kMinWeightShareColumns), wanted);
  p.ranges = min_of(kPartialWeightBytes / partial, s.pixels / kMinGradWeightPixels);
  p.ranges = max_of(1, min_of(ceil_div(wanted, p.shares), p.ranges));
  p.pixels = max_of(1, ceil_div(s.pixels, p.ranges));
  p.ranges = ceil_div(s.pixels, p.pixels);
  p.columns = round_to_panels(ceil_div(s.out_channels, p.shares));
  p.shares = ceil_div(s.out_channels, p.columns);
  p.tile = min_of(p.pixels, staged_pixels(s.in_channels + p.columns, bytes));
  p.tile = ceil_div(p.pixels, ceil_div(p.pixels, min_of(p.tile, kMaxPanelPixels)));
  return p;
}

// Whether the sums of the weight's gradient are the gradient, element for element.
inline bool sums_in_place(const PointwiseConvBackwardArgs& args) {
  const PointwiseShape& s = args.shape;
  return element_bytes(args.dtype) == accumulator_bytes(args.dtype) &&
         s.in_channels % kPanel == 0 && s.out_channels % kPanel == 0 &&
         grad_weight_partition(args).ranges == 1;
}

template <typename A>
struct PointwiseBackwardWorkspace {
  A* weight;       // panels of [C, C']
  A* grad_weight;  // [ranges, C' in whole panels, grad_weight_pitch]
  int64_t grad_weight_pitch;
  int64_t grad_weight_size;  // of a range
  PartialSums input_sums;    // of the gradient of the input
  int64_t bytes;

  explicit PointwiseBackwardWorkspace(const PointwiseConvBackwardArgs& args) {
    const PointwiseShape& s = args.shape;
    Arena arena(args.workspace);
    weight = arena.take<A>(args.grad_input ? round_to_panels(s.in_channels) * s.out_channels : 0);
    grad_weight_pitch = row_pitch(s.in_channels);
    grad_weight_size = round_to_panels(s.out_channels) * grad_weight_pitch;
    const bool in_place = args.grad_weight && sums_in_place(args);
    const int64_t partials = args.grad_weight && !in_place ? grad_weight_partition(args).ranges : 0;
    grad_weight = arena.take<A>(partials * grad_weight_size);
    if (in_place) {
      grad_weight = static_cast<A*>(args.grad_weight);
      grad_weight_pitch = s.in_channels;
    }
    const int64_t ranges = args.input_mean ? grad_input_partition(args).ranges : 0;
    input_sums = {arena.take<double>(ranges * s.in_channels),
                  arena.take<double>(ranges * s.in_channels), ranges, s.in_channels};
    bytes = arena.bytes();
  }
};

// What an item of the input's gradient keeps: a tile of staged gradients and one of results.
template <typename A>
struct GradInputScratch {
  Arena arena;
  ChannelSums<A> sums;
  Row<A> grad, output;
  StagedPixels staged;  // in `grad`

  GradInputScratch(const PointwiseConvBackwardArgs& args, void* scratch)
      : GradInputScratch(args.shape.out_channels, grad_input_partition(args), scratch) {}

 private:
  GradInputScratch(int64_t depth, const ProductPartition& p, void* scratch)
      : arena(scratch), sums(p.columns, arena) {
    grad = {arena.take<A>(p.tile * row_pitch(depth)), p.tile, row_pitch(depth)};
    output = {arena.take<A>(p.tile * row_pitch(p.columns)), p.tile, row_pitch(p.columns)};
  }
};

// Staged pixels as [panels, pixels, kPanel]: what the weight's product reads, a line a pixel.
template <typename A>
struct Panels {
  A* data;
  int64_t stride;  // elements from a panel to the next

  A* at(int64_t pixel, int64_t channel) const {
    return data + channel / kPanel * stride + pixel * kPanel + channel % kPanel;
  }
};

// An odd number of lines, so that panels do not meet in few sets of the L1 cache.
inline int64_t panel_stride(int64_t pixels) { return (pixels | 1) * kPanel; }

// What an item of the weight's gradient keeps: a tile of both operands.
template <typename A>
struct GradWeightScratch {
  Arena arena;
  Panels<A> grad, input;
  StagedPixels staged;  // in `input`

  GradWeightScratch(const PointwiseConvBackwardArgs& args, void* scratch) : arena(scratch) {
    const ProductPartition p = grad_weight_partition(args);
    grad = take(p.tile, p.columns);
    input = take(p.tile, args.shape.in_channels);
  }

 private:
  Panels<A> take(int64_t pixels, int64_t channels) {
    const int64_t stride = panel_stride(pixels);
    return {arena.take<A>(round_to_panels(channels) / kPanel * stride), stride};
  }
};

}  // namespace
}  // namespace mobilenet_ext::cpu
