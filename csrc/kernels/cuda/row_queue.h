// Rows of a map on their way from memory to a thread, in places of its own in shared memory: many
// are under way at a time, and none takes registers. No other thread touches a place, and a thread
// reads a row before it begins to copy another one there; so it takes no barrier, but one place
// more than there are rows under way.
#pragma once

#include "kernels/cuda/async_copy.h"
#include "kernels/cuda/map_vectors.h"
#include "kernels/cuda/partition.h"

namespace mobilenet_ext::cuda {

// Places for kPlaces rows of kCount neighbouring columns, in the vectors that hold them. The
// columns begin kFirst after one where a vector begins.
template <typename V, int kFirst, int kCount, int kPlaces>
class RowQueue {
 public:
  using T = typename V::T;
  using A = Accumulator<T>;

  // The place that comes `steps` after another: they are in a circle.
  static __device__ unsigned int place_after(unsigned int place, unsigned int steps) {
    const unsigned int after = place + steps;
    return after < kPlaces ? after : after - kPlaces;
  }

  // Begins to copy a row to a place, as part of the group that is open. `from`: its first
  // column, `pixel` elements before the next. has(i): whether column i, and with it its vector, is
  // in the image; others are 0.
  template <typename Has>
  __device__ void fetch(unsigned int place, const T* from, unsigned int pixel, Has has) {
    from += kBegin * V::kPack - kFirst;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int column = (kBegin + v) * V::kPack - kFirst;
      copy_async(&at_[place][v][threadIdx.x], from, has(column < 0 ? 0 : column));
      from += V::kPack * pixel;
    }
  }

  // Column i of the row at a place, when its copy has ended.
  __device__ void decode(unsigned int place, int i, A (&to)[V::kLanes]) const {
    const int column = kFirst + i - kBegin * V::kPack, first = column % V::kPack * V::kLanes;
    A all[kWide<V>];
    decode_pack(at_[place][column / V::kPack][threadIdx.x], all);
    for (int v = 0; v < V::kLanes; ++v) to[v] = all[first + v];
  }

 private:
  // In vectors; the first may begin before the first column.
  static constexpr int kBegin = kFirst < 0 ? -((V::kPack - 1 - kFirst) / V::kPack) : 0;
  static constexpr int kVectors = (kFirst + kCount - 1) / V::kPack - kBegin + 1;
  static_assert(kFirst + kCount > 0);

  Vector<V> at_[kPlaces][kVectors][kThreads];
};

}  // namespace mobilenet_ext::cuda
