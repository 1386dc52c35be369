// BatchNorm's passes over a map: statistics, normalise with activation, the two sums of the
// backward, and the backward itself. Each reads every tensor once, by V: 16 bytes of channels at a
// time, or four pixels in NCHW, where they are aligned. One storage type, T; each has its own .cu.
#pragma once

#include "kernels/cuda/batch_norm_typed.h"
#include "kernels/cuda/channel_totals.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/maps.h"
#include "kernels/cuda/moments.h"
#include "kernels/cuda/pixel_tiles.h"

namespace mobilenet_ext::cuda {

template <typename T, typename Args>
struct PassParams {
  using Arguments = Args;
  Args args;
  TilePartition partition;
  ActivationBounds<Accumulator<T>> activation;
};

// On a multiprocessor, for the partition: five fit, but more than these were measured slower.
constexpr int kStatisticsBlocks = 3;

template <typename V>
__global__ void __launch_bounds__(kThreads, 5)
    statistics_kernel(PassParams<typename V::T, BatchNormStatisticsArgs> params) {
  using A = Accumulator<typename V::T>;
  const TilePartition& p = params.partition;
  const Place place(p, p.channels, V::kLanes);
  ShiftedSums<A, V::kLanes> sums;
  for_each_tile<V, kPixelsOfOneTensor>(p, place, [&](const auto& tile) {
    Word<Vector<V>> words[kPixelsOfOneTensor];
    load_tile<V>(tile, params.args.input, words);
#pragma unroll
    for (int i = 0; i < kPixelsOfOneTensor; ++i) {
      if (!tile.has(i)) break;
      A x[kWide<V>];
      decode_pack(unpack<Vector<V>>(words[i]), x);
      if (i == 0) sums.shift_by_first(x);
      sums.add(x);
    }
  });
  const PartialMoments<A> partials(params.args.workspace, p.partitions, p.channels);
  store_partials(sums, p, place, partials);
}

template <typename V>
__global__ void __launch_bounds__(kThreads, 7)
    scale_shift_act_kernel(PassParams<typename V::T, ScaleShiftActArgs> params) {
  using T = typename V::T;
  using A = Accumulator<T>;
  const Place place(params.partition, params.partition.channels, V::kLanes);
  Affine<A, V::kLanes> map;
  map.load(params.args.map, place.works ? place.channel : 0);
  const BoundedEncoder<T> encode(params.activation.low, params.activation.high);
  for_each_tile<V, kPixelsOfOneTensor>(params.partition, place, [&](const auto& tile) {
    Word<Vector<V>> words[kPixelsOfOneTensor];
    load_tile<V>(tile, params.args.input, words);
#pragma unroll
    for (int i = 0; i < kPixelsOfOneTensor; ++i) {
      if (!tile.has(i)) break;
      A y[kWide<V>];
      decode_pack(unpack<Vector<V>>(words[i]), y);
      for (int v = 0; v < kWide<V>; ++v) y[v] = map(v % V::kLanes, y[v]);
      store(static_cast<T*>(params.args.output) + tile.at(i), encode(y));
    }
  });
}

// The pixels of a tile of which the gradient and the input are both read: f(i, grad, x).
template <typename V, typename Params, typename F>
inline __device__ void for_each_gradient(const Params& params, const Place& place, F f) {
  using A = Accumulator<typename V::T>;
  for_each_tile<V, kPixelsOfTwoTensors>(params.partition, place, [&](const auto& tile) {
    Word<Vector<V>> grad_words[kPixelsOfTwoTensors], words[kPixelsOfTwoTensors];
    load_tile<V>(tile, params.args.grad_output, grad_words);
    load_tile<V>(tile, params.args.input, words);
#pragma unroll
    for (int i = 0; i < kPixelsOfTwoTensors; ++i) {
      if (!tile.has(i)) break;
      A grad[kWide<V>], x[kWide<V>];
      decode_pack(unpack<Vector<V>>(grad_words[i]), grad);
      decode_pack(unpack<Vector<V>>(words[i]), x);
      f(tile.at(i), grad, x);
    }
  });
}

constexpr int kGradientSumsBlocks = 4;  // on a multiprocessor

template <typename V>
__global__ void __launch_bounds__(kThreads, kGradientSumsBlocks)
    gradient_sums_kernel(PassParams<typename V::T, ScaleShiftActBackwardReduceArgs> params) {
  using A = Accumulator<typename V::T>;
  constexpr int kLanes = V::kLanes;
  __shared__ TotalSlots<A, kLanes, 2> slots;
  const TilePartition& p = params.partition;
  const Place place(p, p.channels, kLanes);
  const int64_t channel = place.works ? place.channel : 0;
  Affine<A, kLanes> map;
  map.load(params.args.map, channel);
  A mean[kLanes], sums[2][kLanes] = {};  // of dy, of dy * (x - mean)
  load_vector(params.args.mean, channel, mean);
  for_each_gradient<V>(params, place, [&](int64_t, A(&grad)[kWide<V>], A(&x)[kWide<V>]) {
    for (int i = 0; i < kWide<V>; ++i) {
      const int v = i % kLanes;
      const A dy = params.activation.gradient(grad[i], map(v, x[i]));
      sums[0][v] += dy;
      sums[1][v] += dy * (x[i] - mean[v]);
    }
  });
  slots.set(sums);
  const PartialSums<A> partials = {static_cast<A*>(params.args.workspace), p.partitions, 2,
                                   p.channels};
  slots.store(p, place.partition, 2, partials, 0);
}

template <typename A>
struct GradientTotalsParams {
  PartialSums<A> from;
  int64_t channel_blocks;
  A* grad_sum;  // [C]
  A* grad_dot;  // [C]
};

template <typename A>
__global__ void __launch_bounds__(kSumThreads)
    gradient_totals_kernel(GradientTotalsParams<A> params) {
  sum_partials(params.from, params.channel_blocks, [&](int64_t value, int64_t channel, double sum) {
    (value == 0 ? params.grad_sum : params.grad_dot)[channel] = static_cast<A>(sum);
  });
}

template <typename V>
__global__ void __launch_bounds__(kThreads, 4)
    scale_shift_act_backward_kernel(PassParams<typename V::T, ScaleShiftActBackwardArgs> params) {
  using T = typename V::T;
  using A = Accumulator<T>;
  const ScaleShiftActBackwardArgs& args = params.args;
  const Place place(params.partition, params.partition.channels, V::kLanes);
  RawGradient<A, V::kLanes> gradient;
  gradient.load(args.map, args.gradient_map, place.works ? place.channel : 0);
  const bool has_terms = args.gradient_map.raw_scale != nullptr;
  for_each_gradient<V>(params, place, [&](int64_t at, A(&grad)[kWide<V>], A(&x)[kWide<V>]) {
    gradient(grad, x, params.activation, has_terms);
    store_encoded(grad, static_cast<T*>(args.grad_input) + at);
  });
}

// A kernel and how its work is split.
template <typename T, typename Args>
struct MapPass {
  void (*kernel)(PassParams<T, Args>);
  TilePartition partition;

  cudaError_t run(const Args& args, const ScaleShiftAct& map, cudaStream_t stream) const {
    if (partition.tiles == 0) return cudaSuccess;
    const PassParams<T, Args> params = {args, partition, ActivationBounds<Accumulator<T>>(map)};
    return launch(kernel, partition.channel_blocks * partition.partitions, kThreads, stream,
                  params);
  }
};

// The vectors that a map of T may be moved by. Four pixels, as larger vectors would not fit the
// planes of MobileNet; double is there for checking gradients.
template <typename T>
struct MapVectors {
  using OfChannels = Channels<T, 16 / sizeof(T)>;
  using OfPixels = Pixels<T, 4>;
};
template <>
struct MapVectors<double> {
  using OfChannels = Channels<double, 1>;
  using OfPixels = Channels<double, 1>;
};

// Calls f(TypeTag<V>) with those for an op's maps.
template <typename T, typename Args, typename F>
auto dispatch_vectors(const Args& args, std::initializer_list<const void*> maps, F f) {
  using OfChannels = typename MapVectors<T>::OfChannels;
  using OfPixels = typename MapVectors<T>::OfPixels;
  if (args.plane == 1 && args.channels % OfChannels::kLanes == 0 &&
      are_aligned<Vector<OfChannels>>(maps)) {
    return f(TypeTag<OfChannels>{});
  }
  if (args.plane > 1 && args.plane % OfPixels::kPack == 0 && are_aligned<Vector<OfPixels>>(maps)) {
    return f(TypeTag<OfPixels>{});
  }
  return f(TypeTag<Channels<T, 1>>{});
}

template <typename V, typename Args>
MapPass<typename V::T, Args> map_pass(const Args& args, int pixels_of_thread, int64_t most_blocks,
                                      void (*kernel)(PassParams<typename V::T, Args>)) {
  return {kernel, partition_tiles<V>(args.pixels, args.channels, args.plane, pixels_of_thread,
                                     most_blocks)};
}

template <typename T>
auto pass_of(const BatchNormStatisticsArgs& args) {
  return dispatch_vectors<T>(args, {args.input}, [&](auto tag) {
    using V = typename decltype(tag)::type;
    return map_pass<V>(args, kPixelsOfOneTensor, kStatisticsBlocks * kSumBlocks,
                       &statistics_kernel<V>);
  });
}

template <typename T>
auto pass_of(const ScaleShiftActArgs& args) {
  return dispatch_vectors<T>(args, {args.input, args.output}, [&](auto tag) {
    using V = typename decltype(tag)::type;
    return map_pass<V>(args, kPixelsOfOneTensor, kMaxMapBlocks, &scale_shift_act_kernel<V>);
  });
}

template <typename T>
auto pass_of(const ScaleShiftActBackwardReduceArgs& args) {
  return dispatch_vectors<T>(args, {args.grad_output, args.input}, [&](auto tag) {
    using V = typename decltype(tag)::type;
    return map_pass<V>(args, kPixelsOfTwoTensors, kGradientSumsBlocks * kSumBlocks,
                       &gradient_sums_kernel<V>);
  });
}

template <typename T>
auto pass_of(const ScaleShiftActBackwardArgs& args) {
  return dispatch_vectors<T>(args, {args.grad_output, args.input, args.grad_input}, [&](auto tag) {
    using V = typename decltype(tag)::type;
    return map_pass<V>(args, kPixelsOfTwoTensors, kMaxMapBlocks,
                       &scale_shift_act_backward_kernel<V>);
  });
}

template <typename T>
PartialSums<Accumulator<T>> partial_sums(const ScaleShiftActBackwardReduceArgs& args) {
  return {static_cast<Accumulator<T>*>(args.workspace), pass_of<T>(args).partition.partitions, 2,
          args.channels};
}

template <typename T>
int64_t BatchNormOps<T>::workspace_bytes(const BatchNormStatisticsArgs& args) {
  const int64_t partitions = pass_of<T>(args).partition.partitions;
  return PartialMoments<Accumulator<T>>(nullptr, partitions, args.channels).bytes();
}

template <typename T>
int64_t BatchNormOps<T>::workspace_bytes(const ScaleShiftActBackwardReduceArgs& args) {
  return partial_sums<T>(args).bytes();
}

template <typename T>
cudaError_t BatchNormOps<T>::run(const BatchNormStatisticsArgs& args, cudaStream_t stream) {
  using A = Accumulator<T>;
  const auto pass = pass_of<T>(args);
  const cudaError_t error = pass.run(args, ScaleShiftAct{}, stream);
  if (error != cudaSuccess) return error;
  return merge_partials<A>(args, pass.partition.partitions, args.channels, stream);
}

template <typename T>
cudaError_t BatchNormOps<T>::run(const ScaleShiftActArgs& args, cudaStream_t stream) {
  return pass_of<T>(args).run(args, args.map, stream);
}

template <typename T>
cudaError_t BatchNormOps<T>::run(const ScaleShiftActBackwardReduceArgs& args, cudaStream_t stream) {
  using A = Accumulator<T>;
  const cudaError_t error = pass_of<T>(args).run(args, args.map, stream);
  if (error != cudaSuccess) return error;
  const int64_t channel_blocks = ceil_div(args.channels, kSumChannels);
  const GradientTotalsParams<A> totals = {partial_sums<T>(args), channel_blocks,
                                          static_cast<A*>(args.grad_sum),
                                          static_cast<A*>(args.grad_dot)};
  return launch(&gradient_totals_kernel<A>, totals.from.values * channel_blocks, kSumThreads,
                stream, totals);
}

template <typename T>
cudaError_t BatchNormOps<T>::run(const ScaleShiftActBackwardArgs& args, cudaStream_t stream) {
  return pass_of<T>(args).run(args, args.map, stream);
}

}  // namespace mobilenet_ext::cuda
