// What the depthwise convolution's row kernels (depthwise_rows.inl.h) do with their sums, in
// registers, before they are stored: at(channel) gives what holds the values of a vector of
// channels.
#pragma once

#include "kernels/cpu/rows.inl.h"

namespace mobilenet_ext::cpu {
namespace {

// Sums, which start from zero, are mapped, ...
template <typename A, typename Map>
struct MapSums {
  const ChannelMap<A>& params;

  struct Vector {
    Map map;
    Vec<A> start() const { return Vec<A>{}; }
    Vec<A> operator()(Vec<A> sum, int64_t) const { return map(sum); }
    void end() const {}
  };
  Vector at(int64_t channel) const { return {Map(params, channel, AllLanes{})}; }
  void count(int64_t) const {}
};

// ... or masked as gradients behind the map's activation, at the inputs `raw`, and counted as such,
template <typename A, typename Map>
struct MaskSums {
  const ChannelMap<A>& params;
  const A* mean;
  Row<const A> raw;
  ChannelSums<A>& sums;

  struct Vector {
    const MaskSums& row;
    int64_t channel;
    Map map;
    Vec<A> mean, sum, dot;

    Vec<A> start() const { return Vec<A>{}; }
    Vec<A> operator()(Vec<A> gradient, int64_t pixel) {
      const Vec<A> x = load(row.raw.at(pixel, channel), AllLanes{});
      const Vec<A> dy = map.gradient(gradient, x);
      sum += dy;
      dot += dy * (x - mean);
      return dy;
    }
    void end() const { row.sums.add(channel, sum, dot); }
  };
  Vector at(int64_t c) const {
    const Vec<A> center = mean ? load(mean + c, AllLanes{}) : Vec<A>{};
    return {*this, c, Map(params, c, AllLanes{}), center, Vec<A>{}, Vec<A>{}};
  }
  void count(int64_t pixels) const { sums.count(pixels); }
};

// ... or counted as outputs.
template <typename A>
struct CountSums {
  Moments<A>& moments;

  struct Vector {
    VectorMoments<A> moments;
    int64_t channel;
    Vec<A> start() const { return Vec<A>{}; }
    Vec<A> operator()(Vec<A> sum, int64_t) {
      moments.add(sum);
      return sum;
    }
    void end() const { moments.finish(channel); }
  };
  Vector at(int64_t channel) const {
    Vector vector{{moments}, channel};
    vector.moments.start(channel);
    return vector;
  }
  void count(int64_t pixels) const { moments.sums.count(pixels); }
};

}  // namespace
}  // namespace mobilenet_ext::cpu
