// How the backward pointwise convolution is divided, and its memory: partial sums of all items, and
// what each thread stages.
#pragma once

#include "kernels/cpu/patches.inl.h"
#include "kernels/cpu/pointwise_tiles.inl.h"
#include "kernels/cpu/reduce.inl.h"

namespace mobilenet_ext::cpu {
namespace {

// So many pixels of a tile's panels of inputs lie in the L1 cache while its outputs are computed.
constexpr int64_t kMaxPanelPixels = 192;
// All partial sums of the weight's gradient.
constexpr int64_t kPartialWeightBytes = 8 * 1024 * 1024;
// Adding a partial sum to the others takes as long as some 16 multiply-adds.
constexpr int64_t kMinGradWeightPixels = 128;
constexpr int64_t kMinWeightShareColumns = 128;
// More would stage pixels more often, or merge more partial sums.
constexpr int64_t kMaxGradWeightItems = 32;
// Weights so large that there could not be so many ranges of pixels keep to shares of columns.
constexpr int64_t kMinJointRanges = 16;

// A range's partial sums: C' in whole panels x the pitch of C.
inline int64_t partial_weight_bytes(const PointwiseConvBackwardArgs& args) {
  const PointwiseShape& s = args.shape;
  return round_to_panels(s.out_channels) * row_pitch(s.in_channels) * accumulator_bytes(args.dtype);
}

inline int64_t most_weight_ranges(const PointwiseConvBackwardArgs& args) {
  return min_of(kPartialWeightBytes / partial_weight_bytes(args),
                args.shape.pixels / kMinGradWeightPixels);
}

// Where there are many pixels to a weight, an item computes both gradients of its pixels, which are
// then brought in once.
inline bool is_joint(const PointwiseConvBackwardArgs& args) {
  return args.grad_input && args.grad_weight && most_weight_ranges(args) >= kMinJointRanges;
}

// Of the input's gradient: its columns are input channels. A joint one is part of the weight's.
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
  const bool joint = is_joint(args);
  ProductPartition p;
  p.shares = joint ? 1 : min_of(ceil_div(s.out_channels, kMinWeightShareColumns), wanted);
  p.ranges = max_of(1, min_of(ceil_div(wanted, p.shares), most_weight_ranges(args)));
  p.pixels = max_of(1, ceil_div(s.pixels, p.ranges));
  p.ranges = ceil_div(s.pixels, p.pixels);
  p.columns = round_to_panels(ceil_div(s.out_channels, p.shares));
  p.shares = ceil_div(s.out_channels, p.columns);
  const int64_t staged = joint ? 2 * s.in_channels : s.in_channels;  // and as results
  p.tile = min_of(p.pixels, staged_pixels(staged + p.columns, bytes));
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
    const ProductPartition p =
        is_joint(args) ? grad_weight_partition(args) : grad_input_partition(args);
    const int64_t ranges = args.input_mean ? p.ranges : 0;
    input_sums = {arena.take<double>(ranges * s.in_channels),
                  arena.take<double>(ranges * s.in_channels), ranges, s.in_channels};
    bytes = arena.bytes();
  }
};

// An odd number of lines of kPanel elements, so that what lies so far apart does not meet in few
// sets of the L1 cache.
inline int64_t odd_lines(int64_t lines) { return (lines | 1) * kPanel; }

template <typename A>
inline Row<A> staged_gradients(int64_t pixels, int64_t channels, Arena& arena) {
  const int64_t pitch = odd_lines(round_to_panels(channels) / kPanel);
  return {arena.take<A>(pixels * pitch), pixels, pitch};
}

// Where an item of the input's gradient puts it: sums, and a tile of results before they are
// stored.
template <typename A>
struct GradInputTile {
  ChannelSums<A> sums;
  Row<A> output;

  GradInputTile(int64_t pixels, int64_t channels, Arena& arena)
      : sums(channels, arena),
        output{arena.take<A>(pixels * row_pitch(channels)), pixels, row_pitch(channels)} {}
};

template <typename A>
struct GradInputScratch {
  Arena arena;
  GradInputTile<A> result;
  Row<A> grad;
  StagedPixels staged;  // in `grad`

  GradInputScratch(const PointwiseConvBackwardArgs& args, const ProductPartition& p, void* scratch)
      : arena(scratch),
        result(p.tile, p.columns, arena),
        grad(staged_gradients<A>(p.tile, args.shape.out_channels, arena)) {}
};

// Staged pixels as [panels, pixels, kPanel]: what the weight's product reads, a line a pixel.
template <typename A>
struct Panels {
  A* data;
  int64_t stride;  // elements from a panel to the next

  Panels(int64_t pixels, int64_t channels, Arena& arena)
      : data(arena.take<A>(round_to_panels(channels) / kPanel * odd_lines(pixels))),
        stride(odd_lines(pixels)) {}

  A* at(int64_t pixel, int64_t channel) const {
    return data + channel / kPanel * stride + pixel * kPanel + channel % kPanel;
  }
};

// What an item of the weight's gradient keeps: a tile of both operands, and the results of a joint
// one.
template <typename A>
struct GradWeightScratch {
  Arena arena;
  Row<A> grad;
  Panels<A> input;
  StagedPixels staged;  // in `input`
  PatchRows<A> rows;
  Row<A> patches;  // before they are panels
  GradInputTile<A> result;

  GradWeightScratch(const PointwiseConvBackwardArgs& args, const ProductPartition& p, void* scratch)
      : arena(scratch),
        grad(staged_gradients<A>(p.tile, p.columns, arena)),
        input(p.tile, args.shape.in_channels, arena),
        rows(args.patches, arena),
        patches(staged_patches<A>(args.shape.in_channels, has_patches(args.patches) ? p.tile : 0,
                                  arena)),
        result(p.tile, is_joint(args) ? args.shape.in_channels : 0, arena) {}
};

}  // namespace
}  // namespace mobilenet_ext::cpu
