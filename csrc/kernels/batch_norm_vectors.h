// BatchNorm's formulas for one channel, from its statistics to what is applied to every value,
// shared by CPU and CUDA. A is the type of the vectors.
#pragma once

#include <math.h>

#include "kernels/batch_norm.h"

namespace mobilenet_ext {

static MOBILENET_EXT_HOST_DEVICE inline float square_root(float x) { return sqrtf(x); }
static MOBILENET_EXT_HOST_DEVICE inline double square_root(double x) { return sqrt(x); }

template <typename A>
static MOBILENET_EXT_HOST_DEVICE inline void compute_affine(const BatchNormAffineArgs& args,
                                                            int64_t c) {
  const A mean = static_cast<const A*>(args.mean)[c], var = static_cast<const A*>(args.var)[c];
  const A weight = args.weight ? static_cast<const A*>(args.weight)[c] : A{1};
  const A bias = args.bias ? static_cast<const A*>(args.bias)[c] : A{0};
  const A invstd = A{1} / square_root(var + static_cast<A>(args.eps));
  const A scale = weight * invstd;
  static_cast<A*>(args.scale)[c] = scale;
  static_cast<A*>(args.shift)[c] = bias - mean * scale;
  static_cast<A*>(args.invstd)[c] = invstd;
  if (!args.unbiased_var) return;
  static_cast<A*>(args.unbiased_var)[c] = var * static_cast<A>(args.unbias);
}

template <typename A>
static MOBILENET_EXT_HOST_DEVICE inline void compute_gradient_map(
    const BatchNormGradientMapArgs& args, int64_t c) {
  const A invstd = static_cast<const A*>(args.invstd)[c];
  const A grad_weight = static_cast<const A*>(args.grad_dot)[c] * invstd;
  const A per_value = static_cast<const A*>(args.scale)[c] / -static_cast<A>(args.count);
  const A raw_scale = grad_weight * invstd * per_value;
  const A mean = static_cast<const A*>(args.mean)[c];
  static_cast<A*>(args.grad_weight)[c] = grad_weight;
  static_cast<A*>(args.raw_scale)[c] = raw_scale;
  static_cast<A*>(args.raw_shift)[c] =
      static_cast<const A*>(args.grad_sum)[c] * per_value - raw_scale * mean;
}

}  // namespace mobilenet_ext
