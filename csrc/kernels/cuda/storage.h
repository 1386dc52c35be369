// Elements in memory and in registers: the storage types, their conversions, and vectors of
// channels moved in one access. Everything that only nvcc understands is in this file, between
// __CUDACC__ and its #else; the kernels themselves are plain C++ but for CUDA's keywords.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/types.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#include <cstring>
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

// kLanes neighbouring channels of one pixel; a kLanes of 1 makes no demands on alignment.
template <typename T, int kLanes>
struct alignas(sizeof(T) * kLanes) Pack {
  T at[kLanes];
};

// Channels of a vector: four, or 16 bytes of double. Eight of a two-byte type, also 16 bytes, would
// take twice the registers, and a warp's access is whole cache lines either way.
template <typename T>
constexpr int kChannelLanes = sizeof(T) == 8 ? 2 : 4;

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
  memcpy(&pack, &word, sizeof(P));
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
    memcpy(&copy, words, sizeof(P));
    return copy;
  }
}

template <typename P>
inline __device__ void store(void* to, const P& pack) {
  typename WordOf<sizeof(P)>::type word;
  memcpy(&word, &pack, sizeof(P));
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

template <typename P>
inline void store(void* to, const P& pack) {
  *static_cast<P*>(to) = pack;
}

#endif

template <typename P>
inline __device__ P load(const void* from) {
  return unpack<P>(load_word<P>(from));
}

template <typename T, int kLanes, typename A>
inline __device__ void decode_pack(const Pack<T, kLanes>& pack, A (&to)[kLanes]) {
  for (int v = 0; v < kLanes; ++v) to[v] = decode(pack.at[v]);
}

template <typename T, int kLanes>
inline __device__ void store_encoded(const Accumulator<T> (&from)[kLanes], T* to) {
  Pack<T, kLanes> pack;
  for (int v = 0; v < kLanes; ++v) pack.at[v] = encode<T>(from[v]);
  store(to, pack);
}

}  // namespace mobilenet_ext::cuda
