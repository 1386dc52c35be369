// BatchNorm's vector formulas over all channels: a few thousand at most, so one item.
#pragma once

#include "kernels/batch_norm_vectors.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/vec.h"

namespace mobilenet_ext::cpu {
namespace {

template <typename Args>
inline int64_t one_item(const Args&) {
  return 1;
}

inline void affine_run(const BatchNormAffineArgs& args, int64_t, int64_t, void*) {
  dispatch_accumulator(args.dtype, [&](auto a) {
    for (int64_t c = 0; c < args.channels; ++c) compute_affine<decltype(a)>(args, c);
  });
}

inline void gradient_map_run(const BatchNormGradientMapArgs& args, int64_t, int64_t, void*) {
  dispatch_accumulator(args.dtype, [&](auto a) {
    for (int64_t c = 0; c < args.channels; ++c) compute_gradient_map<decltype(a)>(args, c);
  });
}

constexpr Op<BatchNormAffineArgs> kBatchNormAffine = {no_bytes, no_bytes, {{one_item, affine_run}}};

constexpr Op<BatchNormGradientMapArgs> kBatchNormGradientMap = {
    no_bytes, no_bytes, {{one_item, gradient_map_run}}};

}  // namespace
}  // namespace mobilenet_ext::cpu
