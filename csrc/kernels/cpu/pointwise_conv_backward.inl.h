// Pointwise convolution, backward. Two products over the same pixels: the input's gradient is
// grad [pixels, C'] * weight [C', C], masked by the prologue's activation as it is stored; the
// weight's is grad^T * input, which is staged as panels [C / 16, pixels, 16], so that the register
// tile reads a line a pixel. Both take grad through BatchNorm's backward on load and recompute the
// normalised input. Where maps are large beside the weights, an item computes both gradients of its
// pixels, and brings these in from memory once.
#pragma once

#include "kernels/cpu/pointwise_backward_memory.inl.h"
#include "kernels/cpu/reduce.inl.h"

namespace mobilenet_ext::cpu {
namespace {

// Some columns of a tile of raw gradients.
template <typename T, typename A = Accumulator<T>>
inline Row<const A> stage_gradients(const PointwiseConvBackwardArgs& args, Range pixels,
                                    Range columns, Row<A> to) {
  const int64_t channels = args.shape.out_channels, first = columns.begin;
  const T* raw = static_cast<const T*>(args.output);
  if (raw) raw += pixels.begin * channels + first;
  stage_gradient_row(map_row(static_cast<const T*>(args.grad_output), pixels, channels, first), raw,
                     ChannelGradient<A>(args.epilogue, args.gradient_map, first), columns.size(),
                     to);
  return {to.data, pixels.size(), to.stride};
}

// All columns for the input's gradient: in place where there is nothing to do.
template <typename T, typename A = Accumulator<T>>
inline Row<const A> all_gradients(const PointwiseConvBackwardArgs& args, Range pixels,
                                  GradInputScratch<A>& scratch) {
  const Range all{0, args.shape.out_channels};
  if constexpr (kIsPlain<T>) {
    if (!args.epilogue.scale && !args.gradient_map.grad_scale) {
      return map_row(static_cast<const T*>(args.grad_output), pixels, all.end, 0);
    }
  }
  if (scratch.staged.replace(pixels)) stage_gradients<T>(args, pixels, all, scratch.grad);
  return {scratch.grad.data, pixels.size(), scratch.grad.stride};
}

// Some columns of the input's gradient for a tile of pixels, stored and counted. `weight`: panels.
template <typename T, typename A = Accumulator<T>>
inline void store_grad_input(const PointwiseConvBackwardArgs& args, Range pixels, Range columns,
                             Row<const A> grad, const A* weight, GradInputTile<A>& result) {
  const PointwiseShape& s = args.shape;
  const int64_t first = columns.begin;
  multiply(grad, s.out_channels, weight, columns, result.output);
  const T* raw = map_row(static_cast<const T*>(args.input), pixels, s.in_channels, first).data;
  store_gradient_row<T, A>({result.output.data, pixels.size(), result.output.stride}, raw,
                           ChannelMap<A>(args.prologue, first),
                           ChannelMap<A>::at(args.input_mean, first), columns.size(),
                           map_row(static_cast<T*>(args.grad_input), pixels, s.in_channels, first),
                           result.sums);
}

template <typename T>
inline void grad_input_item(const PointwiseConvBackwardArgs& args, const ProductPartition& p,
                            const ProductItem& item, GradInputScratch<Accumulator<T>>& scratch) {
  using A = Accumulator<T>;
  const PointwiseBackwardWorkspace<A> workspace(args);
  scratch.result.sums.clear();
  for_each_staged(item.pixels, p.tile, [&](Range pixels) {
    const Row<const A> grad = all_gradients<T>(args, pixels, scratch);
    store_grad_input<T>(args, pixels, item.columns, grad, workspace.weight, scratch.result);
  });
  if (!args.input_mean) return;
  workspace.input_sums.put(scratch.result.sums, item.range, item.columns.begin,
                           item.columns.size());
}

// to [outputs, inputs] = (or, if `add`, +=) grad^T * input, both of the same pixels, for some
// panels of inputs, kPanels at a time as long as there are so many.
template <int kPanels, typename A>
inline void multiply_transposed(Row<const A> grad, int64_t outputs, const Panels<A>& input,
                                Range panels, bool add, A* to, int64_t pitch) {
  constexpr int kRows = kMostRows<A, kPanels>;
  const int64_t end = panels.end - panels.size() % kPanels;
  const RowTiles tiles(outputs, kRows);
  for (int64_t t = 0; t < tiles.count; ++t) {
    dispatch_rows<kRows>(tiles.size(t), [&](auto rows) {
      for (int64_t panel = panels.begin; panel < end; panel += kPanels) {
        Tile<A, decltype(rows)::value, kPanels> tile;
        tile.start(nullptr);
        tile.add(grad.data + tiles.begin(t), 1, grad.stride, input.at(0, panel * kPanel),
                 input.stride, grad.pixels);
        A* const at = to + tiles.begin(t) * pitch + panel * kPanel;
        if (add) {
          tile.add_to(at, pitch);
        } else {
          tile.template finish<Activation::kNone>(at, pitch);
        }
      }
    });
  }
  if constexpr (kPanels > 1) {
    if (end < panels.end) {
      multiply_transposed<1>(grad, outputs, input, {end, panels.end}, add, to, pitch);
    }
  }
}

// The normalised inputs, or patches, as panels.
template <typename T, typename A = Accumulator<T>>
inline void stage_inputs(const PointwiseConvBackwardArgs& args, Range pixels,
                         GradWeightScratch<A>& scratch) {
  const int64_t channels = args.shape.in_channels;
  const T* input = static_cast<const T*>(args.input);
  if (!has_patches(args.patches)) {
    stage_row(map_row(input, pixels, channels, 0), ChannelMap<A>(args.prologue, 0), channels,
              scratch.input);
    return;
  }
  const Row<A> patches = scratch.patches;
  stage_patches(args.patches, input, pixels, scratch.rows, patches);
  stage_row(Row<const A>{patches.data, pixels.size(), patches.stride},
            ChannelMap<A>(ScaleShiftAct{}, 0), round_to_panels(channels), scratch.input);
}

template <typename T>
inline void grad_weight_item(const PointwiseConvBackwardArgs& args, const ProductPartition& p,
                             const ProductItem& item, GradWeightScratch<Accumulator<T>>& scratch) {
  using A = Accumulator<T>;
  const PointwiseShape& s = args.shape;
  const PointwiseBackwardWorkspace<A> workspace(args);
  const int64_t pitch = workspace.grad_weight_pitch, outputs = item.columns.size();
  const bool joint = is_joint(args);
  A* sums =
      workspace.grad_weight + item.range * workspace.grad_weight_size + item.columns.begin * pitch;
  scratch.result.sums.clear();
  for_each_staged(item.pixels, p.tile, [&](Range pixels) {
    const Row<const A> grad = stage_gradients<T>(args, pixels, item.columns, scratch.grad);
    if (scratch.staged.replace(pixels)) stage_inputs<T>(args, pixels, scratch);
    multiply_transposed<kNarrowTilePanels<A>>(grad, outputs, scratch.input,
                                              {0, round_to_panels(s.in_channels) / kPanel},
                                              pixels.begin > item.pixels.begin, sums, pitch);
    if (!joint) return;
    const Range all{0, s.in_channels};
    store_grad_input<T>(args, pixels, all, grad, workspace.weight, scratch.result);
  });
  if (joint && args.input_mean) {
    workspace.input_sums.put(scratch.result.sums, item.range, 0, s.in_channels);
  }
}

// Adds up the ranges' partial sums for a panel of output channels.
template <typename T>
inline void merge_grad_weight(const PointwiseConvBackwardArgs& args, int64_t panel) {
  using A = Accumulator<T>;
  const PointwiseShape& s = args.shape;
  const PointwiseBackwardWorkspace<A> workspace(args);
  const int64_t ranges = grad_weight_partition(args).ranges;
  const Range rows = chunk(panel, kPanel, s.out_channels);
  for (int64_t o = rows.begin; o < rows.end; ++o) {
    const A* from = workspace.grad_weight + o * workspace.grad_weight_pitch;
    T* to = static_cast<T*>(args.grad_weight) + o * s.in_channels;
    for (int64_t c = 0; c < s.in_channels; c += kPanel) {
      double total[kPanel] = {};
      for (int64_t r = 0; r < ranges; ++r) {
        for (int64_t i = 0; i < kPanel; ++i) {
          total[i] += from[r * workspace.grad_weight_size + c + i];
        }
      }
      A rounded[kPanel];
      for (int64_t i = 0; i < kPanel; ++i) rounded[i] = static_cast<A>(total[i]);
      for_each_vector<A>(min_of(kPanel, s.in_channels - c), [&](int64_t i, auto lanes) {
        store(to + c + i, load(rounded + i, AllLanes{}), lanes);
      });
    }
  }
}

inline void merge_input_sums(const PointwiseConvBackwardArgs& args, int64_t index) {
  const Range part = chunk(index, kChannelsPerMerge, args.shape.in_channels);
  dispatch_accumulator(args.dtype, [&](auto a) {
    using A = decltype(a);
    PointwiseBackwardWorkspace<A>(args).input_sums.template merge<A>(part, args.grad_sum,
                                                                     args.grad_dot);
  });
}

inline int64_t pointwise_backward_workspace_bytes(const PointwiseConvBackwardArgs& args) {
  return dispatch_accumulator(
      args.dtype, [&](auto a) { return PointwiseBackwardWorkspace<decltype(a)>(args).bytes; });
}

inline int64_t pointwise_backward_scratch_bytes(const PointwiseConvBackwardArgs& args) {
  return dispatch_accumulator(args.dtype, [&](auto a) {
    using A = decltype(a);
    return max_of(GradInputScratch<A>(args, grad_input_partition(args), nullptr).arena.bytes(),
                  GradWeightScratch<A>(args, grad_weight_partition(args), nullptr).arena.bytes());
  });
}

inline int64_t pointwise_backward_panels(const PointwiseConvBackwardArgs& args) {
  return args.grad_input ? ceil_div(args.shape.in_channels, kPanel) : 0;
}

inline void pointwise_backward_pack(const PointwiseConvBackwardArgs& args, int64_t begin,
                                    int64_t end, void*) {
  const PointwiseWeight& w = args.weight;
  dispatch_dtype(args.dtype, [&](auto t) {
    using T = decltype(t);
    const MatrixView<T> transposed{static_cast<const T*>(w.data), w.in_stride, w.out_stride,
                                   args.shape.in_channels, args.shape.out_channels};
    pack_panels(transposed, begin, end, PointwiseBackwardWorkspace<Accumulator<T>>(args).weight);
  });
}

inline int64_t grad_input_items(const PointwiseConvBackwardArgs& args) {
  return args.grad_input && !is_joint(args) ? grad_input_partition(args).items() : 0;
}

inline void grad_input_run(const PointwiseConvBackwardArgs& args, int64_t begin, int64_t end,
                           void* scratch) {
  const ProductPartition p = grad_input_partition(args);
  dispatch_dtype(args.dtype, [&](auto t) {
    using T = decltype(t);
    GradInputScratch<Accumulator<T>> memory(args, p, scratch);
    for (int64_t i = begin; i < end; ++i) {
      const PointwiseShape& s = args.shape;
      grad_input_item<T>(args, p, product_item(p, i, s.pixels, s.in_channels), memory);
    }
  });
}

inline int64_t grad_weight_items(const PointwiseConvBackwardArgs& args) {
  return args.grad_weight ? grad_weight_partition(args).items() : 0;
}

inline void grad_weight_run(const PointwiseConvBackwardArgs& args, int64_t begin, int64_t end,
                            void* scratch) {
  const ProductPartition p = grad_weight_partition(args);
  dispatch_dtype(args.dtype, [&](auto t) {
    using T = decltype(t);
    GradWeightScratch<Accumulator<T>> memory(args, p, scratch);
    for (int64_t i = begin; i < end; ++i) {
      const PointwiseShape& s = args.shape;
      grad_weight_item<T>(args, p, product_item(p, i, s.pixels, s.out_channels), memory);
    }
  });
}

// First panels of the weight's gradient, then runs of channels of the two sums.
inline int64_t grad_weight_merges(const PointwiseConvBackwardArgs& args) {
  if (!args.grad_weight || sums_in_place(args)) return 0;
  return ceil_div(args.shape.out_channels, kPanel);
}

inline int64_t pointwise_backward_merges(const PointwiseConvBackwardArgs& args) {
  return grad_weight_merges(args) + (args.input_mean ? merge_items(args.shape.in_channels) : 0);
}

inline void pointwise_backward_merge(const PointwiseConvBackwardArgs& args, int64_t begin,
                                     int64_t end, void*) {
  const int64_t weights = grad_weight_merges(args);
  dispatch_dtype(args.dtype, [&](auto t) {
    for (int64_t i = begin; i < min_of(end, weights); ++i) merge_grad_weight<decltype(t)>(args, i);
  });
  for (int64_t i = max_of(begin, weights); i < end; ++i) merge_input_sums(args, i - weights);
}

constexpr Op<PointwiseConvBackwardArgs> kPointwiseConvBackward = {
    pointwise_backward_workspace_bytes,
    pointwise_backward_scratch_bytes,
    {{pointwise_backward_panels, pointwise_backward_pack},
     {grad_input_items, grad_input_run},
     {grad_weight_items, grad_weight_run},
     {pointwise_backward_merges, pointwise_backward_merge}}};

}  // namespace
}  // namespace mobilenet_ext::cpu
