// Vectors of elements: loaded, stored and converted whole. Those of a two-byte type are converted
// in pairs, which takes half the instructions.
#pragma once

#include "kernels/cuda/storage.h"

namespace mobilenet_ext::cuda {

// kLanes neighbouring channels of one pixel; a kLanes of 1 makes no demands on alignment.
template <typename T, int kLanes>
struct alignas(sizeof(T) * kLanes) Pack {
  T at[kLanes];
};

// Channels of a vector: four, or 16 bytes of double. Eight of a two-byte type, also 16 bytes, would
// take twice the registers, and a warp's access is whole cache lines either way.
template <typename T>
constexpr int kChannelLanes = sizeof(T) == 8 ? 2 : 4;

template <typename P>
inline __device__ P load(const void* from) {
  return unpack<P>(load_word<P>(from));
}

template <typename T, int kLanes>
constexpr bool kInPairs = sizeof(T) == 2 && kLanes % 2 == 0;

template <typename T, int kLanes, typename A>
inline __device__ void decode_pack(const Pack<T, kLanes>& pack, A (&to)[kLanes]) {
  if constexpr (kInPairs<T, kLanes>) {
    uint32_t pairs[kLanes / 2];
    std::memcpy(pairs, &pack, sizeof(pack));
    for (int i = 0; i < kLanes; i += 2) Pairs<T>::decode(pairs[i / 2], to[i], to[i + 1]);
  } else {
    for (int v = 0; v < kLanes; ++v) to[v] = decode(pack.at[v]);
  }
}

template <typename T, int kLanes>
inline __device__ Pack<T, kLanes> encode_pack(const Accumulator<T> (&from)[kLanes]) {
  Pack<T, kLanes> pack;
  if constexpr (kInPairs<T, kLanes>) {
    uint32_t pairs[kLanes / 2];
    for (int i = 0; i < kLanes; i += 2) pairs[i / 2] = encode_pair<T>(from[i], from[i + 1]);
    std::memcpy(&pack, pairs, sizeof(pack));
  } else {
    for (int v = 0; v < kLanes; ++v) pack.at[v] = encode<T>(from[v]);
  }
  return pack;
}

template <typename T, int kLanes>
inline __device__ void store_encoded(const Accumulator<T> (&from)[kLanes], T* to) {
  store(to, encode_pack<T>(from));
}

// Encodes, then bounds what is rounded, which comes to the same where a T can be either bound.
template <typename T>
class BoundedEncoder {
  using A = Accumulator<T>;

 public:
  __device__ BoundedEncoder(A low, A high) : low_(low), high_(high) {
    if constexpr (sizeof(T) == 2) {
      low_pair_ = encode_pair<T>(low, low);
      high_pair_ = encode_pair<T>(high, high);
    }
  }

  template <int kLanes>
  __device__ Pack<T, kLanes> operator()(A (&from)[kLanes]) const {
    if constexpr (kInPairs<T, kLanes>) {
      Pack<T, kLanes> pack = encode_pack<T>(from);
      uint32_t pairs[kLanes / 2];
      std::memcpy(pairs, &pack, sizeof(pack));
      for (uint32_t& pair : pairs) pair = bound_pair<T>(pair, low_pair_, high_pair_);
      std::memcpy(&pack, pairs, sizeof(pack));
      return pack;
    } else {
      for (A& y : from) y = not_above(not_below(y, low_), high_);
      return encode_pack<T>(from);
    }
  }

 private:
  A low_, high_;
  uint32_t low_pair_, high_pair_;
};

}  // namespace mobilenet_ext::cuda
