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
  MapStrides grad, input;  // of outputs and their gradients; of inputs and theirs

  BackwardParams(const DepthwiseConvBackwardArgs& args, const ConvPartition& partition,
                 const PartialSums<A>& partials)
      : args(args),
        partition(partition),
        partials(partials),
        prologue(args.prologue),
        epilogue(args.epilogue),
        grad(output_strides(args.layout, args.shape)),
        input(input_strides(args.layout, args.shape)) {}
};

}  // namespace mobilenet_ext::cuda
