// Element types of the tensors, and the one word that differs between a C++ and a CUDA compiler.
// Everything shared between instruction sets is `static` on purpose: an AVX2 copy of an inline
// function must never be linked into code for a CPU that has no AVX2.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MOBILENET_EXT_HOST_DEVICE __host__ __device__
#else
#define MOBILENET_EXT_HOST_DEVICE
#endif

namespace mobilenet_ext {

// Per-channel vectors, statistics and every accumulator are float, or double for kFloat64.
enum class DType : int32_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

// Maps [N, C, H, W] are dense: with the channels of a pixel side by side, or the pixels of a
// channel.
enum class Layout : int32_t { kNhwc, kNchw };

static inline int64_t element_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

static inline int64_t accumulator_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

}  // namespace mobilenet_ext
