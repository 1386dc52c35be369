// Depthwise convolution, backward, NHWC and NCHW. 3 x 3 at stride 1 or 2: one pass, in which
// grad_output, output and input are read once but for the border rows and columns of strips, which
// the caches serve, and grad_input is written once. Anything else: a pass for each gradient. Then
// the partial sums of all thread blocks are added up. One storage type, T; each has its own .cu.
#pragma once

#include "kernels/cuda/backward_any.h"
#include "kernels/cuda/backward_window.h"
#include "kernels/cuda/conv_values.h"
#include "kernels/cuda/depthwise_conv_backward_typed.h"
#include "kernels/cuda/launch.h"

namespace mobilenet_ext::cuda {

template <typename Window>
__global__ void __launch_bounds__(kThreads, Window::kMinBlocks)
    backward_window_kernel(BackwardParams<typename Window::A> params) {
  __shared__ typename Window::Parameters parameters[kMaxVectors];
  __shared__ union {
    typename Window::Cells cells;
    typename Window::Slots slots;  // afterwards
  } shared;
  const DepthwiseConvBackwardArgs& args = params.args;
  const Place place(params.partition, args.shape.channels, Window::kLanes);
  typename Window::Parameters& own = parameters[place.vector];
  if (place.works && place.position == 0) {
    own.template load<typename Window::T>(args, place.channel);
  }
  __syncthreads();
  const Window window(params, place.channel, own, shared.cells);
  typename Window::Sums sums = {};
  for_each_strip(params.partition, place, Window::kColumns,
                 [&](const Strip& strip) { window.run(strip, sums); });
  // Other threads' cells may lie where this one's slots do. None is still being copied: all that
  // were begun have been used.
  __syncthreads();
  shared.slots.set(sums);
  shared.slots.store(params.partition, place.partition, static_cast<int>(params.partials.values),
                     params.partials, 0);
}

// On a multiprocessor.
constexpr int kAnyMinBlocks = 3;

template <typename Gather>
__global__ void __launch_bounds__(kThreads, kAnyMinBlocks)
    any_grad_input_kernel(BackwardParams<typename Gather::A> params) {
  __shared__ typename Gather::Slots slots;
  const Place place(params.partition, params.args.shape.channels, Gather::kLanes);
  const Gather gather(params, place.works ? place.channel : 0);
  slots.clear();
  for_each_strip(params.partition, place, 1, [&](const Strip& strip) { gather.run(strip, slots); });
  slots.store(params.partition, place.partition, static_cast<int>(params.partials.values),
              params.partials, 0);
}

// Groups of taps are the slowest part of the grid.
template <typename Taps>
__global__ void __launch_bounds__(kThreads, kAnyMinBlocks)
    any_grad_weight_kernel(BackwardParams<typename Taps::A> params) {
  __shared__ typename Taps::Slots slots;
  const ConvPartition& p = params.partition;
  Place place(p, params.args.shape.channels, Taps::kLanes);
  const int64_t tap = place.partition / p.partitions * Taps::kSums;
  place.partition %= p.partitions;
  const Taps taps(params, place.works ? place.channel : 0);
  slots.clear();
  for_each_strip(p, place, 1, [&](const Strip& strip) { taps.run(strip, tap, slots); });
  const int64_t left = params.partials.values - tap;
  slots.store(p, place.partition, static_cast<int>(left < Taps::kSums ? left : Taps::kSums),
              params.partials, tap);
}

template <typename T>
struct FinishParams {
  PartialSums<Accumulator<T>> from;
  int64_t channel_blocks;
  int64_t taps;              // of grad_weight; grad_sum and grad_dot come after them
  T* grad_weight;            // [C, taps] or null: not needed
  Accumulator<T>* grad_sum;  // [C]
  Accumulator<T>* grad_dot;  // [C]
};

template <typename T>
__global__ void __launch_bounds__(kSumThreads) finish_sums_kernel(FinishParams<T> params) {
  using A = Accumulator<T>;
  sum_partials(params.from, params.channel_blocks, [&](int64_t value, int64_t channel, double sum) {
    const A total = static_cast<A>(sum);
    if (value == params.taps) {
      params.grad_sum[channel] = total;
    } else if (value > params.taps) {
      params.grad_dot[channel] = total;
    } else if (params.grad_weight) {
      params.grad_weight[channel * params.taps + value] = encode<T>(total);
    }
  });
}

// A launch that computes gradients, and what it leaves in the workspace for finish_sums_kernel.
template <typename T>
struct BackwardPass {
  void (*kernel)(BackwardParams<Accumulator<T>>);
  ConvPartition partition;
  int64_t groups;      // of taps, each of which goes over everything
  int64_t taps, sums;  // of the weight gradients; of the input gradients

  PartialSums<Accumulator<T>> partials(const DepthwiseConvBackwardArgs& args) const {
    return {static_cast<Accumulator<T>*>(args.workspace), partition.partitions, taps + sums,
            args.shape.channels};
  }
};

template <typename V, int kStride>
BackwardPass<typename V::T> window_pass(const DepthwiseConvBackwardArgs& args) {
  using WithRaw = BackwardWindow<V, kStride, true>;
  using Alone = BackwardWindow<V, kStride, false>;
  const auto kernel =
      args.output ? &backward_window_kernel<WithRaw> : &backward_window_kernel<Alone>;
  const bool totals = args.grad_weight || args.input_mean;
  const ConvPartition p =
      partition_conv(cell_map<V>(args.shape), args.layout, V::kLanes, Alone::kColumns,
                     totals ? kSumBlocks * Alone::kMinBlocks : kMaxBlocks);
  return {kernel, p, 1, totals ? Alone::kTaps : 0, args.input_mean ? 2 : 0};
}

template <typename V, typename F>
void for_each_any_pass(const DepthwiseConvBackwardArgs& args, F f) {
  using T = typename V::T;
  if (args.grad_input) {
    const ConvPartition p =
        partition_conv(input_map(args.shape), args.layout, V::kLanes, 1,
                       args.input_mean ? kSumBlocks * kAnyMinBlocks : kMaxBlocks);
    const auto kernel = &any_grad_input_kernel<AnyGradInput<V>>;
    f(BackwardPass<T>{kernel, p, 1, 0, args.input_mean ? 2 : 0});
  }
  if (args.grad_weight) {
    using Taps = AnyGradWeight<V>;
    const int64_t taps = args.shape.kernel * args.shape.kernel;
    const int64_t groups = ceil_div(taps, Taps::kSums);
    const ConvPartition p = partition_conv(output_map(args.shape), args.layout, V::kLanes, 1,
                                           ceil_div(kSumBlocks * kAnyMinBlocks, groups));
    f(BackwardPass<T>{&any_grad_weight_kernel<Taps>, p, groups, taps, 0});
  }
}

// Calls f(BackwardPass<T>) for the passes that the arguments take, in order.
template <typename T, typename F>
void for_each_pass(const DepthwiseConvBackwardArgs& args, F f) {
  const Pointers maps = {args.grad_output, args.output, args.input, args.grad_input};
  if constexpr (sizeof(T) < 8) {
    if (slides(args.shape)) {
      return dispatch_sliding<T>(args, maps, [&](auto values, auto stride) {
        f(window_pass<typename decltype(values)::type, stride.value>(args));
      });
    }
  }
  using Wide = Channels<T, kChannelLanes<T>>;
  if (moves_by<Wide>(args, maps)) return for_each_any_pass<Wide>(args, f);
  for_each_any_pass<Channels<T, 1>>(args, f);
}

template <typename T>
cudaError_t run_pass(const BackwardPass<T>& pass, const DepthwiseConvBackwardArgs& args,
                     cudaStream_t stream) {
  using A = Accumulator<T>;
  const ConvPartition& p = pass.partition;
  const PartialSums<A> partials = pass.partials(args);
  if (p.strips > 0) {
    const int64_t blocks = p.channel_blocks * p.partitions * pass.groups;
    const cudaError_t error =
        launch(pass.kernel, blocks, kThreads, stream, BackwardParams<A>(args, p, partials));
    if (error != cudaSuccess) return error;
  }
  if (partials.values == 0) return cudaSuccess;
  const int64_t channel_blocks = ceil_div(args.shape.channels, kSumChannels);
  const FinishParams<T> finish = {partials,
                                  channel_blocks,
                                  pass.taps,
                                  static_cast<T*>(args.grad_weight),
                                  static_cast<A*>(args.grad_sum),
                                  static_cast<A*>(args.grad_dot)};
  return launch(&finish_sums_kernel<T>, partials.values * channel_blocks, kSumThreads, stream,
                finish);
}

template <typename T>
int64_t depthwise_conv_backward_workspace_bytes_of(const DepthwiseConvBackwardArgs& args) {
  int64_t bytes = 0;  // passes take turns
  for_each_pass<T>(args, [&](const BackwardPass<T>& pass) {
    bytes = max_of(bytes, pass.partials(args).bytes());
  });
  return bytes;
}

template <typename T>
cudaError_t depthwise_conv_backward_of(const DepthwiseConvBackwardArgs& args, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  for_each_pass<T>(args, [&](const BackwardPass<T>& pass) {
    if (error == cudaSuccess) error = run_pass(pass, args, stream);
  });
  return error;
}

}  // namespace mobilenet_ext::cuda
