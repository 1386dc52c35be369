// Everything that one instruction set compiles. Included by one .cpp per instruction set, after it
// has set the target and MOBILENET_EXT_VECTOR_BYTES.
#pragma once

#include "kernels/cpu/batch_norm.inl.h"
#include "kernels/cpu/batch_norm_vectors.inl.h"
#include "kernels/cpu/depthwise_conv.inl.h"
#include "kernels/cpu/depthwise_conv_backward.inl.h"
#include "kernels/cpu/mobilenet.inl.h"
#include "kernels/cpu/pointwise_conv.inl.h"
#include "kernels/cpu/pointwise_conv_backward.inl.h"

namespace mobilenet_ext::cpu {
namespace {

constexpr KernelTable make_table(const char* name) {
  return {name,
          kDepthwiseConv,
          kDepthwiseConvBackward,
          kPointwiseConv,
          kPointwiseConvBackward,
          kBatchNormStatistics,
          kScaleShiftAct,
          kScaleShiftActBackwardReduce,
          kScaleShiftActBackward,
          kBatchNormAffine,
          kBatchNormGradientMap,
          kMobileNet};
}

}  // namespace
}  // namespace mobilenet_ext::cpu
