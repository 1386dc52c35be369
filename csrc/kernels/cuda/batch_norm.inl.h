// BatchNorm's passes over a [pixels, C] matrix: statistics, normalise with activation, the two sums
// of the backward, and the backward itself. Each reads every tensor once, 16 bytes at a time where
// whole vectors of channels are aligned. One storage type, T; each has its own .cu.
#pragma once

#include "kernels/cuda/batch_norm_typed.h"
#include "kernels/cuda/channel_totals.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/maps.h"
#include "kernels/cuda/moments.h"
#include "kernels/cuda/pixel_tiles.h"

namespace mobilenet_ext::cuda {

template <typename T, typename Args>
struct MatrixParams {
  using Arguments = Args;
  Args args;
  TilePartition partition;
  ActivationBounds<Accumulator<T>> activation;
};

template <typename T, int kLanes>
__global__ void __launch_bounds__(kThreads, 5)
    statistics_kernel(MatrixParams<T, BatchNormStatisticsArgs> params) {
  using A = Accumulator<T>;
  const TilePartition& p = params.partition;
  const Place place(p, p.channels, kLanes);
  ShiftedSums<A, kLanes> sums;
  for_each_tile<kPixelsOfOneTensor>(p, place, [&](const auto& tile) {
    Pack<T, kLanes> packs[kPixelsOfOneTensor];
    tile.load_from(params.args.input, packs);
#pragma unroll
    for (int i = 0; i < kPixelsOfOneTensor; ++i) {
      if (!tile.has(i)) break;
      A x[kLanes];
      decode_pack(packs[i], x);
      sums.add(x);
    }
  });
  const PartialMoments<A> partials(params.args.workspace, p.partitions, p.channels);
  store_partials(sums, p, place, p.channels, partials);
}

template <typename T, int kLanes>
__global__ void __launch_bounds__(kThreads, 8)
    scale_shift_act_kernel(MatrixParams<T, ScaleShiftActArgs> params) {
  using A = Accumulator<T>;
  const Place place(params.partition, params.partition.channels, kLanes);
  Affine<A, kLanes> map;
  map.load(params.args.map, place.works ? place.channel : 0);
  for_each_tile<kPixelsOfOneTensor>(params.partition, place, [&](const auto& tile) {
    Pack<T, kLanes> packs[kPixelsOfOneTensor];
    tile.load_from(params.args.input, packs);
#pragma unroll
    for (int i = 0; i < kPixelsOfOneTensor; ++i) {
      if (!tile.has(i)) break;
      A y[kLanes];
      decode_pack(packs[i], y);
      for (int v = 0; v < kLanes; ++v) y[v] = params.activation.activate(map(v, y[v]));
      store_encoded(y, static_cast<T*>(params.args.output) + tile.at(i));
    }
  });
}

// The pixels of a tile of which the gradient and the input are both read: f(i, grad, x).
template <typename T, int kLanes, typename Args, typename F>
inline __device__ void for_each_gradient(const MatrixParams<T, Args>& params, const Place& place,
                                         F f) {
  using A = Accumulator<T>;
  for_each_tile<kPixelsOfTwoTensors>(params.partition, place, [&](const auto& tile) {
    Pack<T, kLanes> grad_packs[kPixelsOfTwoTensors], packs[kPixelsOfTwoTensors];
    tile.load_from(params.args.grad_output, grad_packs);
    tile.load_from(params.args.input, packs);
#pragma unroll
    for (int i = 0; i < kPixelsOfTwoTensors; ++i) {
      if (!tile.has(i)) break;
      A grad[kLanes], x[kLanes];
      decode_pack(grad_packs[i], grad);
      decode_pack(packs[i], x);
      f(tile.at(i), grad, x);
    }
  });
}

template <typename T, int kLanes>
__global__ void __launch_bounds__(kThreads, 4)
    gradient_sums_kernel(MatrixParams<T, ScaleShiftActBackwardReduceArgs> params) {
  using A = Accumulator<T>;
  __shared__ TotalSlots<A, kLanes, 2> slots;
  const TilePartition& p = params.partition;
  const Place place(p, p.channels, kLanes);
  const int64_t channel = place.works ? place.channel : 0;
  Affine<A, kLanes> map;
  map.load(params.args.map, channel);
  A mean[kLanes], sum[kLanes] = {}, dot[kLanes] = {};
  load_vector(params.args.mean, channel, mean);
  for_each_gradient<T, kLanes>(params, place, [&](int64_t, A(&grad)[kLanes], A(&x)[kLanes]) {
    for (int v = 0; v < kLanes; ++v) {
      const A dy = params.activation.gradient(grad[v], map(v, x[v]));
      sum[v] += dy;
      dot[v] += dy * (x[v] - mean[v]);
    }
  });
  slots.clear();
  slots.add(0, sum);
  slots.add(1, dot);
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

template <typename T, int kLanes>
__global__ void __launch_bounds__(kThreads, 4)
    scale_shift_act_backward_kernel(MatrixParams<T, ScaleShiftActBackwardArgs> params) {
  using A = Accumulator<T>;
  const ScaleShiftActBackwardArgs& args = params.args;
  const Place place(params.partition, params.partition.channels, kLanes);
  RawGradient<A, kLanes> gradient;
  gradient.load(args.map, args.gradient_map, place.works ? place.channel : 0);
  const bool has_terms = args.gradient_map.raw_scale != nullptr;
  for_each_gradient<T, kLanes>(params, place, [&](int64_t at, A(&grad)[kLanes], A(&x)[kLanes]) {
    gradient(grad, x, params.activation, has_terms);
    store_encoded(grad, static_cast<T*>(args.grad_input) + at);
  });
}

// A kernel and how its work is split.
template <typename T, typename Args>
struct MatrixPass {
  void (*kernel)(MatrixParams<T, Args>);
  TilePartition partition;

  cudaError_t run(const Args& args, Activation activation, cudaStream_t stream) const {
    if (partition.tiles == 0) return cudaSuccess;
    const MatrixParams<T, Args> params = {args, partition,
                                          ActivationBounds<Accumulator<T>>(activation)};
    return launch(kernel, partition.channel_blocks * partition.partitions, kThreads, stream,
                  params);
  }
};

// 16 bytes of channels; double is there for checking gradients.
template <typename T>
constexpr int kVectorLanes = sizeof(T) == 8 ? 1 : 16 / sizeof(T);

template <typename T, typename Args>
MatrixPass<T, Args> matrix_pass(const Args& args, std::initializer_list<const void*> matrices,
                                int pixels_of_thread, int64_t most_blocks,
                                void (*by_vector)(MatrixParams<T, Args>),
                                void (*by_channel)(MatrixParams<T, Args>)) {
  constexpr int kLanes = kVectorLanes<T>;
  const bool vectors = args.channels % kLanes == 0 && are_aligned<Pack<T, kLanes>>(matrices);
  return {vectors ? by_vector : by_channel,
          partition_tiles(args.pixels, args.channels, vectors ? kLanes : 1, pixels_of_thread,
                          most_blocks)};
}

template <typename T>
auto pass_of(const BatchNormStatisticsArgs& args) {
  return matrix_pass<T>(args, {args.input}, kPixelsOfOneTensor, kMaxStatisticsBlocks,
                        &statistics_kernel<T, kVectorLanes<T>>, &statistics_kernel<T, 1>);
}

template <typename T>
auto pass_of(const ScaleShiftActArgs& args) {
  return matrix_pass<T>(args, {args.input, args.output}, kPixelsOfOneTensor, kMaxMapBlocks,
                        &scale_shift_act_kernel<T, kVectorLanes<T>>, &scale_shift_act_kernel<T, 1>);
}

template <typename T>
auto pass_of(const ScaleShiftActBackwardReduceArgs& args) {
  return matrix_pass<T>(args, {args.grad_output, args.input}, kPixelsOfTwoTensors,
                        kMaxStatisticsBlocks, &gradient_sums_kernel<T, kVectorLanes<T>>,
                        &gradient_sums_kernel<T, 1>);
}

template <typename T>
auto pass_of(const ScaleShiftActBackwardArgs& args) {
  return matrix_pass<T>(args, {args.grad_output, args.input, args.grad_input}, kPixelsOfTwoTensors,
                        kMaxMapBlocks, &scale_shift_act_backward_kernel<T, kVectorLanes<T>>,
                        &scale_shift_act_backward_kernel<T, 1>);
}

template <typename T>
PartialSums<Accumulator<T>> partial_sums(const ScaleShiftActBackwardReduceArgs& args) {
  return {static_cast<Accumulator<T>*>(args.workspace), pass_of<T>(args).partition.partitions, 2,
          args.channels};
}

template <typename T>
int64_t BatchNormOps<T>::workspace_bytes(const BatchNormStatisticsArgs& args) {
  const int64_t partitions = pass_of<T>(args).partition.partitions;
  return PartialMoments<Accumulator<T>>::bytes(partitions, args.channels);
}

template <typename T>
int64_t BatchNormOps<T>::workspace_bytes(const ScaleShiftActBackwardReduceArgs& args) {
  return partial_sums<T>(args).bytes();
}

template <typename T>
cudaError_t BatchNormOps<T>::run(const BatchNormStatisticsArgs& args, cudaStream_t stream) {
  using A = Accumulator<T>;
  const auto pass = pass_of<T>(args);
  const cudaError_t error = pass.run(args, Activation::kNone, stream);
  if (error != cudaSuccess) return error;
  return merge_partials<A>(args, pass.partition.partitions, args.channels, stream);
}

template <typename T>
cudaError_t BatchNormOps<T>::run(const ScaleShiftActArgs& args, cudaStream_t stream) {
  return pass_of<T>(args).run(args, args.map.activation, stream);
}

template <typename T>
cudaError_t BatchNormOps<T>::run(const ScaleShiftActBackwardReduceArgs& args, cudaStream_t stream) {
  using A = Accumulator<T>;
  const cudaError_t error = pass_of<T>(args).run(args, args.map.activation, stream);
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
  const Activation activation = args.map.scale ? args.map.activation : Activation::kNone;
  return pass_of<T>(args).run(args, activation, stream);
}

}  // namespace mobilenet_ext::cuda
