// Elements in memory and in registers: the storage types, their conversions, and vectors of
// channels moved in one access. Everything that only nvcc understands is in this file, bounds.h and
// async_copy.h, between __CUDACC__ and its #else; the kernels themselves are plain C++ but for
// CUDA's keywords.
#pragma once

#include <cuda_runtime_api.h>

#include <cstring>

#include "kernels/cuda/bounds.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace mobilenet_ext::cuda {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

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

inline __device__ float decode(float x) { return x; }
inline __device__ double decode(double x) { return x; }

// Encoding rounds to nearest, ties to even.
template <typename T>
inline __device__ T encode(Accumulator<T> x) {
  return x;
}

#ifdef __CUDACC__

inline __device__ float decode(BFloat16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}

inline __device__ float decode(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <>
inline __device__ BFloat16 encode<BFloat16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}

template <>
inline __device__ Float16 encode<Float16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

// Two neighbours of a two-byte type as they lie in memory, the first in the low half. There are
// instructions to round two values at once, and to bound them once they are rounded.
template <typename T>
struct Pairs;

template <>
struct Pairs<BFloat16> {
  using Values = __nv_bfloat162;
  static __device__ void decode(uint32_t pair, float& first, float& second) {
    first = __uint_as_float(pair << 16);
    second = __uint_as_float(pair & 0xffff0000u);
  }
  static __device__ Values round(float first, float second) {
    return __floats2bfloat162_rn(first, second);
  }
};

template <>
struct Pairs<Float16> {
  using Values = __half2;
  static __device__ void decode(uint32_t pair, float& first, float& second) {
    const float2 both = __half22float2(reinterpret_cast<const Values&>(pair));
    first = both.x;
    second = both.y;
  }
  static __device__ Values round(float first, float second) {
    return __floats2half2_rn(first, second);
  }
};

template <typename T>
inline __device__ uint32_t encode_pair(float first, float second) {
  const typename Pairs<T>::Values pair = Pairs<T>::round(first, second);
  return reinterpret_cast<const uint32_t&>(pair);
}

template <typename T>
inline __device__ uint32_t bound_pair(uint32_t pair, uint32_t low, uint32_t high) {
  using Values = typename Pairs<T>::Values;
  const auto values = [](const uint32_t& of) { return reinterpret_cast<const Values&>(of); };
  const Values bounded = __hmin2_nan(__hmax2_nan(values(pair), values(low)), values(high));
  return reinterpret_cast<const uint32_t&>(bounded);
}

// The built-in type whose load or store is a single access of so many bytes.
template <int kBytes>
struct WordOf;
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<4> {
  using type = unsigned int;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};

// A pack as it was loaded, in as few registers as it can be.
template <typename P>
using Word = typename WordOf<sizeof(P)>::type;

// Memory that is only read for as long as the kernel runs.
template <typename P>
inline __device__ Word<P> load_word(const void* from) {
  return __ldg(static_cast<const Word<P>*>(from));
}

template <typename P>
inline __device__ P unpack(const Word<P>& word) {
  P pack;
  std::memcpy(&pack, &word, sizeof(P));
  return pack;
}

// A structure in shared memory: of 16-byte words, read again at every call to spare registers, or
// of a single channel, which the compiler may keep in them.
template <typename P>
inline __device__ P load_shared(const P& from) {
  if constexpr (sizeof(P) % sizeof(uint4) != 0) {
    return from;
  } else {
    uint4 words[sizeof(P) / sizeof(uint4)];
    unsigned int address = static_cast<unsigned int>(__cvta_generic_to_shared(&from));
    for (uint4& word : words) {
      asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
                   : "r"(address));
      address += sizeof(uint4);
    }
    P copy;
    std::memcpy(&copy, words, sizeof(P));
    return copy;
  }
}

// Keeps a value from being computed anew wherever it is used.
inline __device__ int in_register(int value) {
  asm("" : "+r"(value));
  return value;
}
inline __device__ unsigned int in_register(unsigned int value) {
  asm("" : "+r"(value));
  return value;
}
inline __device__ float in_register(float value) {
  asm("" : "+f"(value));
  return value;
}
inline __device__ double in_register(double value) { return value; }

template <typename P>
inline __device__ void store(void* to, const P& pack) {
  typename WordOf<sizeof(P)>::type word;
  std::memcpy(&word, &pack, sizeof(P));
  *static_cast<decltype(word)*>(to) = word;
}

#else

// The same for a host compiler, so that the kernels' logic can be tested without a GPU.
inline float decode(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float decode(Float16 x) {
  _Float16 value;
  std::memcpy(&value, &x.bits, sizeof(value));
  return static_cast<float>(value);
}

template <>
inline BFloat16 encode<BFloat16>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (x != x) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
inline Float16 encode<Float16>(float x) {
  const _Float16 value = static_cast<_Float16>(x);
  Float16 stored;
  std::memcpy(&stored.bits, &value, sizeof(value));
  return stored;
}

template <typename T>
struct Pairs {
  static void decode(uint32_t pair, float& first, float& second) {
    first = cuda::decode(T{static_cast<uint16_t>(pair)});
    second = cuda::decode(T{static_cast<uint16_t>(pair >> 16)});
  }
};

template <typename T>
inline uint32_t encode_pair(float first, float second) {
  return encode<T>(first).bits | static_cast<uint32_t>(encode<T>(second).bits) << 16;
}

template <typename T>
inline uint32_t bound_pair(uint32_t pair, uint32_t low, uint32_t high) {
  float value[2], least[2], most[2];
  Pairs<T>::decode(pair, value[0], value[1]);
  Pairs<T>::decode(low, least[0], least[1]);
  Pairs<T>::decode(high, most[0], most[1]);
  for (int i = 0; i < 2; ++i) value[i] = not_above(not_below(value[i], least[i]), most[i]);
  return encode_pair<T>(value[0], value[1]);
}

template <typename P>
using Word = P;

template <typename P>
inline P load_word(const void* from) {
  return *static_cast<const P*>(from);
}

template <typename P>
inline P unpack(const P& word) {
  return word;
}

template <typename P>
inline P load_shared(const P& from) {
  return from;
}

template <typename N>
inline N in_register(N value) {
  return value;
}

template <typename P>
inline void store(void* to, const P& pack) {
  *static_cast<P*>(to) = pack;
}

#endif

}  // namespace mobilenet_ext::cuda
