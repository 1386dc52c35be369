// Matrices packed for the CPU's products, in a way that suits every instruction set:
//   matrix [C', K]: panels of kPanel rows, [C' / kPanel, K, kPanel], with zeros past row C'
#pragma once

#include <cstdint>

namespace mobilenet_ext {

constexpr int64_t kPanel = 16;  // a cache line of floats

static inline int64_t round_to_panels(int64_t channels) {
  return (channels + kPanel - 1) / kPanel * kPanel;
}

}  // namespace mobilenet_ext
