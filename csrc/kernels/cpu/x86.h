// What x86's wide vectors have beyond the contract of vec.h. The activations' bounds as max and
// min: one instruction where GCC compares and blends. Of NaN, and of zeros of both signs, x86 takes
// the second operand, as `?:` in activation.h takes y. And stores past the caches. Included where
// the target has the instructions, before anything that uses them.
#pragma once

#include <immintrin.h>

#include "kernels/activation.h"
#include "kernels/cpu/vec.h"

namespace mobilenet_ext {

#if MOBILENET_EXT_VECTOR_BYTES == 64
// With a mask of all lanes: GCC 12 warns of _mm512_max_ps itself.
template <>
inline cpu::Vec<float> not_below(cpu::Vec<float> y, cpu::Vec<float> low) {
  return _mm512_mask_max_ps(low, 0xffff, low, y);
}

template <>
inline cpu::Vec<float> not_above(cpu::Vec<float> y, cpu::Vec<float> high) {
  return _mm512_mask_min_ps(high, 0xffff, high, y);
}

namespace cpu {
namespace {
template <>
inline void store_past_caches(float* to, Vec<float> v) {
  _mm512_stream_ps(to, v);
}
template <>
inline void store_past_caches(double* to, Vec<double> v) {
  _mm512_stream_pd(to, v);
}
}  // namespace
}  // namespace cpu
#else
template <>
inline cpu::Vec<float> not_below(cpu::Vec<float> y, cpu::Vec<float> low) {
  return _mm256_max_ps(low, y);
}

template <>
inline cpu::Vec<float> not_above(cpu::Vec<float> y, cpu::Vec<float> high) {
  return _mm256_min_ps(high, y);
}

namespace cpu {
namespace {
template <>
inline void store_past_caches(float* to, Vec<float> v) {
  _mm256_stream_ps(to, v);
}
template <>
inline void store_past_caches(double* to, Vec<double> v) {
  _mm256_stream_pd(to, v);
}
}  // namespace
}  // namespace cpu
#endif

}  // namespace mobilenet_ext
