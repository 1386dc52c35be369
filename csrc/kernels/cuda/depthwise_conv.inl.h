// Depthwise convolution, forward: act(x * scale + shift) on load, convolve, then store raw with
// statistics, or act(y * scale + shift). NHWC. The input is read once but for the border rows and
// columns of strips, which the caches serve; the output is written once. One storage type, T; each
// has its own .cu.
#pragma once

#include "kernels/cuda/conv_window.h"
#include "kernels/cuda/depthwise_conv_typed.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moments.h"
#include "kernels/dispatch.h"

namespace mobilenet_ext::cuda {

// Where raw outputs go: mapped, or counted as stored.
template <typename T, int kLanes, bool kStatistics>
struct Output {
  using A = Accumulator<T>;
  T* data;  // at the thread's channel
  AnyMap<A, kLanes> map;
  ShiftedSums<A, kLanes> sums;

  __device__ Output(const DepthwiseConvArgs& args, int64_t channel)
      : data(static_cast<T*>(args.output) + channel), map(args.epilogue, channel) {}

  __device__ void put(A (&y)[kLanes], int64_t offset) {
    if constexpr (!kStatistics) map(y);
    Pack<T, kLanes> pack;
    for (int v = 0; v < kLanes; ++v) pack.at[v] = encode<T>(y[v]);
    store(data + offset, pack);
    if constexpr (kStatistics) {
      decode_pack(pack, y);
      sums.add(y);
    }
  }
};

struct ConvParams {
  DepthwiseConvArgs args;
  ConvPartition partition;
};

template <typename Window, bool kStatistics>
__global__ void __launch_bounds__(kThreads, 3) depthwise_conv_kernel(ConvParams params) {
  using T = typename Window::T;
  using A = Accumulator<T>;
  const DepthwiseConvArgs& args = params.args;
  const ConvPartition& p = params.partition;
  const Place place(p, args.shape.channels, Window::kLanes);
  const int64_t channel = place.works ? place.channel : 0;
  Output<T, Window::kLanes, kStatistics> output(args, channel);
  if (place.works) {
    const Window window(args, channel);
    for_each_strip(p, place, Window::kColumns,
                   [&](const Strip& strip) { window.run(strip, output); });
  }
  if constexpr (kStatistics) {
    const PartialMoments<A> partials(args.workspace, p.partitions, args.shape.channels);
    store_partials(output.sums, p, place, args.shape.channels, partials);
  }
}

template <typename Window>
ConvPartition partition_for(const DepthwiseConvArgs& args) {
  return partition_conv(output_map(args.shape), Window::kLanes, Window::kColumns,
                        args.mean ? kMaxStatisticsBlocks : kMaxBlocks);
}

template <typename Window>
cudaError_t run(const DepthwiseConvArgs& args, cudaStream_t stream) {
  using A = Accumulator<typename Window::T>;
  const ConvPartition p = partition_for<Window>(args);
  const auto kernel =
      args.mean ? &depthwise_conv_kernel<Window, true> : &depthwise_conv_kernel<Window, false>;
  if (p.strips > 0) {
    const int64_t blocks = p.channel_blocks * p.partitions;
    const cudaError_t error = launch(kernel, blocks, kThreads, stream, ConvParams{args, p});
    if (error != cudaSuccess) return error;
  }
  if (!args.mean) return cudaSuccess;
  return merge_partials<A>(args, p.partitions, args.shape.channels, stream);
}

template <typename T, int kLanes, int kStride, typename F>
void dispatch_prologue(const ScaleShiftAct& prologue, F f) {
  using A = Accumulator<T>;
  if (!prologue.scale) return f(TypeTag<SlidingWindow<T, kLanes, kStride, Identity<A, kLanes>>>{});
  dispatch_activation(prologue.activation, [&](auto activation) {
    using Prologue = Normalize<A, kLanes, decltype(activation)::value>;
    f(TypeTag<SlidingWindow<T, kLanes, kStride, Prologue>>{});
  });
}

template <typename T, typename F>
void dispatch_window(const DepthwiseConvArgs& args, F f) {
  constexpr int kLanes = kChannelLanes<T>;
  const bool vectors =
      args.shape.channels % kLanes == 0 && are_aligned<Pack<T, kLanes>>({args.input, args.output});
  if (!vectors) return f(TypeTag<AnyWindow<T, 1>>{});
  if constexpr (sizeof(T) < 8) {
    const bool slides = args.shape.kernel == 3 && args.shape.dilation == 1;
    if (slides && args.shape.stride == 1) return dispatch_prologue<T, kLanes, 1>(args.prologue, f);
    if (slides && args.shape.stride == 2) return dispatch_prologue<T, kLanes, 2>(args.prologue, f);
  }
  f(TypeTag<AnyWindow<T, kLanes>>{});
}

template <typename T>
int64_t depthwise_conv_workspace_bytes_of(const DepthwiseConvArgs& args) {
  using A = Accumulator<T>;
  int64_t bytes = 0;
  if (!args.mean) return bytes;
  dispatch_window<T>(args, [&](auto tag) {
    const ConvPartition p = partition_for<typename decltype(tag)::type>(args);
    bytes = PartialMoments<A>::bytes(p.partitions, args.shape.channels);
  });
  return bytes;
}

template <typename T>
cudaError_t depthwise_conv_of(const DepthwiseConvArgs& args, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  dispatch_window<T>(args,
                     [&](auto tag) { error = run<typename decltype(tag)::type>(args, stream); });
  return error;
}

}  // namespace mobilenet_ext::cuda
