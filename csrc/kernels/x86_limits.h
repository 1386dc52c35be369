// x86's max and min of vectors of floats. They give the second operand unless the first is truly
// greater (less), so that NaN and -0 of the second go through, as in `b < a ? a : b`. GCC, unlike
// Clang, makes a comparison and a blend of that: twice the work.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__) && defined(__SSE__)

#include <type_traits>

#define MOBILENET_EXT_X86_LIMITS 1

namespace mobilenet_ext {

typedef float FourFloats __attribute__((vector_size(16)));
typedef float EightFloats __attribute__((vector_size(32)));
typedef float SixteenFloats __attribute__((vector_size(64)));

static inline FourFloats x86_max(FourFloats a, FourFloats b) { return __builtin_ia32_maxps(a, b); }
static inline FourFloats x86_min(FourFloats a, FourFloats b) { return __builtin_ia32_minps(a, b); }

#ifdef __AVX__
static inline EightFloats x86_max(EightFloats a, EightFloats b) {
  return __builtin_ia32_maxps256(a, b);
}
static inline EightFloats x86_min(EightFloats a, EightFloats b) {
  return __builtin_ia32_minps256(a, b);
}
static constexpr bool kHasEightFloats = true;
#else
static constexpr bool kHasEightFloats = false;
#endif

#ifdef __AVX512F__
constexpr int kAllLanes = -1, kCurrentRounding = 4;
static inline SixteenFloats x86_max(SixteenFloats a, SixteenFloats b) {
  return __builtin_ia32_maxps512_mask(a, b, a, kAllLanes, kCurrentRounding);
}
static inline SixteenFloats x86_min(SixteenFloats a, SixteenFloats b) {
  return __builtin_ia32_minps512_mask(a, b, a, kAllLanes, kCurrentRounding);
}
static constexpr bool kHasSixteenFloats = true;
#else
static constexpr bool kHasSixteenFloats = false;
#endif

// Whether there are such instructions for V.
template <typename V>
static constexpr bool kHasX86Limits =
    std::is_same_v<V, FourFloats> || (kHasEightFloats && std::is_same_v<V, EightFloats>) ||
    (kHasSixteenFloats && std::is_same_v<V, SixteenFloats>);

}  // namespace mobilenet_ext

#endif
