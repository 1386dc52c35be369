// What the kernels of the backward depthwise convolution are told.
#pragma once

#include "kernels/cuda/channel_totals.h"
#include "kernels/cuda/maps.h"

namespace mobilenet_ext::cuda {

template <typename A>
struct BackwardParams {
  DepthwiseConvBackwardArgs args;
  ConvPartition partition;
  PartialSums<A> partials;
  ActivationBounds<A> prologue, epilogue;
  int64_t grad_pitch, input_pitch;  // elements from row to row

  BackwardParams(const DepthwiseConvBackwardArgs& args, const ConvPartition& partition,
                 const PartialSums<A>& partials)
      : args(args),
        partition(partition),
        partials(partials),
        prologue(args.prologue.scale ? args.prologue.activation : Activation::kNone),
        epilogue(args.epilogue.scale ? args.epilogue.activation : Activation::kNone),
        grad_pitch(args.shape.out_width * args.shape.channels),
        input_pitch(args.shape.in_width * args.shape.channels) {}
};

}  // namespace mobilenet_ext::cuda
