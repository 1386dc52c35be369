// The vector contract: everything that kernels may do with vectors, on GCC/Clang vector extensions.
// MOBILENET_EXT_VECTOR_BYTES and the target are set by the file that includes this one (avx2.cpp,
// ...), which is why all of it lives in an unnamed namespace. Arithmetic, comparisons and ?: come
// with the vector types; what is left is moving elements of any storage type in and out.
#pragma once

#include <utility>

#include "kernels/types.h"

namespace mobilenet_ext::cpu {
namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <typename E, int kLanes>
struct VectorOf {
  typedef E type __attribute__((vector_size(kLanes * sizeof(E))));
};

// Lanes of a vector of accumulators A (float or double).
template <typename A>
inline constexpr int kLanes = MOBILENET_EXT_VECTOR_BYTES / static_cast<int>(sizeof(A));
template <typename A>
using Vec = typename VectorOf<A, kLanes<A>>::type;

using U32 = typename VectorOf<uint32_t, kLanes<float>>::type;
using U16 = typename VectorOf<uint16_t, kLanes<float>>::type;

// The type that storage type T is computed in.
template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

template <typename To, typename From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

inline Vec<float> decode(U16 h, BFloat16) {
  return bit_cast<Vec<float>>(__builtin_convertvector(h, U32) << 16);
}

// Half to float: shift the exponent into place, scale by 2^112 to rebias it (exact, subnormals
// too), and set the whole exponent where it was all ones (infinity, NaN).
inline Vec<float> decode(U16 h, Float16) {
  const U32 wide = __builtin_convertvector(h, U32);
  const U32 magnitude = wide & 0x7fffu;
  const Vec<float> rebiased = bit_cast<Vec<float>>(magnitude << 13) * 0x1p112f;
  const U32 special = (magnitude >= 0x7c00u) ? (U32{} + 0x7f800000u) : U32{};
  return bit_cast<Vec<float>>(bit_cast<U32>(rebiased) | special | ((wide & 0x8000u) << 16));
}

// Both encoders round to nearest, ties to even.
inline U16 encode(Vec<float> v, BFloat16) {
  const U32 bits = bit_cast<U32>(v);
  const U32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const U32 is_nan = (bits & 0x7fffffffu) > 0x7f800000u ? U32{} + 1u : U32{};
  return __builtin_convertvector(is_nan != 0u ? U32{} + 0x7fc0u : rounded, U16);
}

inline U16 encode(Vec<float> v, Float16) {
  const U32 bits = bit_cast<U32>(v);
  const U32 magnitude = bits & 0x7fffffffu;
  const U32 normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 0.5 leaves a subnormal half in the lowest mantissa bits, rounded by the adder.
  const U32 subnormal = bit_cast<U32>(bit_cast<Vec<float>>(magnitude) + 0.5f) - 0x3f000000u;
  const U32 infinity = U32{} + 0x7c00u;
  U32 half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x47800000u ? infinity : half;
  half = magnitude > 0x7f800000u ? U32{} + 0x7e00u : half;
  return __builtin_convertvector(half | ((bits >> 16) & 0x8000u), U16);
}

// How many lanes a load or store touches: all, or the first n at the end of a row of channels.
struct AllLanes {};
struct FirstLanes {
  int64_t n;
};

template <typename V, typename E>
inline V load_raw(const E* from, AllLanes) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}

template <typename V, typename E>
inline V load_raw(const E* from, FirstLanes lanes) {
  E padded[sizeof(V) / sizeof(E)] = {};
  for (int64_t i = 0; i < lanes.n; ++i) padded[i] = from[i];
  return load_raw<V>(padded, AllLanes{});
}

template <typename V, typename E>
inline void store_raw(E* to, V v, AllLanes) {
  __builtin_memcpy(to, &v, sizeof(V));
}

template <typename V, typename E>
inline void store_raw(E* to, V v, FirstLanes lanes) {
  E padded[sizeof(V) / sizeof(E)];
  store_raw(padded, v, AllLanes{});
  for (int64_t i = 0; i < lanes.n; ++i) to[i] = padded[i];
}

// Lanes that are not loaded are 0.
template <typename T, typename Lanes>
inline Vec<Accumulator<T>> load(const T* from, Lanes lanes) {
  if constexpr (sizeof(T) == 2) {
    return decode(load_raw<U16>(from, lanes), T{});
  } else {
    return load_raw<Vec<T>>(from, lanes);
  }
}

template <typename T, typename Lanes>
inline void store(T* to, Vec<Accumulator<T>> v, Lanes lanes) {
  if constexpr (sizeof(T) == 2) {
    store_raw(to, encode(v, T{}), lanes);
  } else {
    store_raw(to, v, lanes);
  }
}

// Whether the target has stores past its caches (x86.h).
constexpr bool kStoresPastCaches = MOBILENET_EXT_VECTOR_BYTES > 16;

// Stores to memory, where the target can, without fetching the line first: `to` is a multiple of a
// vector's size. Other threads see it after finish_stores() only.
template <typename A>
inline void store_past_caches(A* to, Vec<A> v) {
  store(to, v, AllLanes{});
}

inline void finish_stores() {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}

// v as it will be read back after a store as T.
template <typename T>
inline Vec<Accumulator<T>> round_to(Vec<Accumulator<T>> v) {
  if constexpr (sizeof(T) == 2) {
    return decode(encode(v, T{}), T{});
  } else {
    return v;
  }
}

// All lanes `x`. Subtracting zero changes no value, so that compilers leave only the broadcast.
template <typename A>
inline Vec<A> broadcast(A x) {
  return x - Vec<A>{};
}

// Exchanges the lanes of `a` that have the bit kBit in their number with those of `b` that have
// not.
template <int kBit, typename V, int... kLane>
inline void exchange_lanes(V& a, V& b, std::integer_sequence<int, kLane...>) {
  constexpr int kCount = sizeof...(kLane);
  const V first = __builtin_shufflevector(a, b, (kLane & kBit ? kCount + kLane - kBit : kLane)...);
  b = __builtin_shufflevector(a, b, (kLane & kBit ? kCount + kLane : kLane + kBit)...);
  a = first;
}

// Transposes a square of vectors, a bit of the row and lane numbers at a time.
template <typename A, int kBit = 1>
inline void transpose(Vec<A> (&rows)[kLanes<A>]) {
  if constexpr (kBit < kLanes<A>) {
    for (int r = 0; r < kLanes<A>; ++r) {
      if (r & kBit) continue;
      exchange_lanes<kBit>(rows[r], rows[r + kBit], std::make_integer_sequence<int, kLanes<A>>());
    }
    transpose<A, 2 * kBit>(rows);
  }
}

// Calls f(c, lanes) for every vector of `channels` channels.
template <typename A, typename F>
inline void for_each_vector(int64_t channels, F f) {
  const int64_t whole = channels - channels % kLanes<A>;
  for (int64_t c = 0; c < whole; c += kLanes<A>) f(c, AllLanes{});
  if (whole < channels) f(whole, FirstLanes{channels - whole});
}

// Calls f(T{}) with the storage type of `dtype`.
template <typename F>
inline void dispatch_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat32: return f(float{});
    case DType::kFloat64: return f(double{});
    case DType::kBFloat16: return f(BFloat16{});
    case DType::kFloat16: return f(Float16{});
  }
}

// Returns f(A{}) with the accumulator type of `dtype`.
template <typename F>
inline auto dispatch_accumulator(DType dtype, F f) {
  return dtype == DType::kFloat64 ? f(double{}) : f(float{});
}

}  // namespace
}  // namespace mobilenet_ext::cpu
