// Depthwise convolution, forward: act(x * scale + shift) on load, convolve, then store raw with
// statistics, or act(y * scale + shift). NHWC and NCHW. The input is read once but for the border
// rows and columns of strips, which the caches serve; the output is written once. One storage type,
// T; each has its own .cu.
#pragma once

#include "kernels/cuda/conv_values.h"
#include "kernels/cuda/conv_window.h"
#include "kernels/cuda/depthwise_conv_typed.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moments.h"
#include "kernels/dispatch.h"

namespace mobilenet_ext::cuda {

// Where the rows of a strip go: bounded by the activation, or counted as stored.
template <typename V, bool kStatistics>
struct Output {
  using T = typename V::T;
  using A = Accumulator<T>;
  static constexpr int kLanes = V::kLanes;
  unsigned int channel;
  int64_t row;
  unsigned int pixel;
  BoundedEncoder<T> encode;
  ShiftedSums<A, kLanes> sums;
  T* to;        // the next row
  int columns;  // of it, of which a strip may have more

  __device__ Output(const ConvParams<A>& params, int64_t channel)
      : channel(static_cast<unsigned int>(channel)),
        row(params.output.row),
        pixel(in_register(V::pixel(params.output))),
        encode(params.epilogue.low, params.epilogue.high) {}

  __device__ void begin(const ConvParams<A>& params, const Strip& strip) {
    to = static_cast<T*>(params.args.output) + channel * params.output.channel +
         params.output.at(strip.image, strip.row, strip.column);
    columns = in_register(static_cast<int>(params.args.shape.out_width - strip.column));
  }

  template <int kColumns>
  __device__ void put(const A (&y)[kColumns][kLanes]) {
#pragma unroll
    for (int x = 0; x < kColumns; x += V::kPack) {
      if (x > 0 && x >= columns) break;
      A values[kWide<V>];
      for (int i = 0; i < kWide<V>; ++i) values[i] = y[x + i / kLanes][i % kLanes];
      const Vector<V> pack = kStatistics ? encode_pack<T>(values) : encode(values);
      store(to + x * pixel, pack);
      if constexpr (kStatistics) {
        decode_pack(pack, values);
        if (x == 0) sums.shift_by_first(values);
        sums.add(values);
      }
    }
    to += row;
  }
};

template <typename Window, bool kStatistics>
__global__ void __launch_bounds__(kThreads, Window::kMinBlocks)
    depthwise_conv_kernel(ConvParams<Accumulator<typename Window::T>> params) {
  using T = typename Window::T;
  using A = Accumulator<T>;
  __shared__ typename Window::Rows rows;
  const DepthwiseConvArgs& args = params.args;
  const ConvPartition& p = params.partition;
  const Place place(p, args.shape.channels, Window::kLanes);
  const int64_t channel = place.works ? place.channel : 0;
  Output<typename Window::Values, kStatistics> output(params, channel);
  if (place.works) {
    Window window(params, kStatistics ? ScaleShiftAct{} : args.epilogue, channel, rows);
    for_each_strip(p, place, Window::kColumns,
                   [&](const Strip& strip) { window.run(strip, output); });
  }
  if constexpr (kStatistics) {
    const PartialMoments<A> partials(args.workspace, p.partitions, args.shape.channels);
    store_partials(output.sums, p, place, partials);
  }
}

template <typename Window>
ConvPartition partition_for(const DepthwiseConvArgs& args) {
  return partition_conv(output_map(args.shape), args.layout, Window::kLanes, Window::kColumns,
                        args.mean ? kSumBlocks * Window::kMinBlocks : kMaxBlocks);
}

template <typename Window>
cudaError_t run(const DepthwiseConvArgs& args, cudaStream_t stream) {
  using A = Accumulator<typename Window::T>;
  const ConvPartition p = partition_for<Window>(args);
  const auto kernel =
      args.mean ? &depthwise_conv_kernel<Window, true> : &depthwise_conv_kernel<Window, false>;
  if (p.strips > 0) {
    const int64_t blocks = p.channel_blocks * p.partitions;
    const cudaError_t error = launch(kernel, blocks, kThreads, stream, ConvParams<A>(args, p));
    if (error != cudaSuccess) return error;
  }
  if (!args.mean) return cudaSuccess;
  return merge_partials<A>(args, p.partitions, args.shape.channels, stream);
}

template <typename V, int kStride, typename F>
void dispatch_prologue(const ScaleShiftAct& prologue, F f) {
  using A = Accumulator<typename V::T>;
  constexpr int kLanes = V::kLanes;
  if constexpr (kLanes == 1) {
    f(TypeTag<SlidingWindow<V, kStride, Bounded<A, 1>>>{});
  } else if (!prologue.scale) {
    f(TypeTag<SlidingWindow<V, kStride, Identity<A, kLanes>>>{});
  } else {
    dispatch_activation(prologue.activation, [&](auto activation) {
      using Prologue = Normalize<A, kLanes, decltype(activation)::value>;
      f(TypeTag<SlidingWindow<V, kStride, Prologue>>{});
    });
  }
}

template <typename T, typename F>
void dispatch_window(const DepthwiseConvArgs& args, F f) {
  const Pointers maps = {args.input, args.output};
  if constexpr (sizeof(T) < 8) {
    if (slides(args.shape)) {
      return dispatch_sliding<T>(args, maps, [&](auto values, auto stride) {
        dispatch_prologue<typename decltype(values)::type, stride.value>(args.prologue, f);
      });
    }
  }
  using Wide = Channels<T, kChannelLanes<T>>;
  if (moves_by<Wide>(args, maps)) return f(TypeTag<AnyWindow<Wide>>{});
  f(TypeTag<AnyWindow<Channels<T, 1>>>{});
}

template <typename T>
int64_t depthwise_conv_workspace_bytes_of(const DepthwiseConvArgs& args) {
  using A = Accumulator<T>;
  int64_t bytes = 0;
  if (!args.mean) return bytes;
  dispatch_window<T>(args, [&](auto tag) {
    const ConvPartition p = partition_for<typename decltype(tag)::type>(args);
    bytes = PartialMoments<A>(nullptr, p.partitions, args.shape.channels).bytes();
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
