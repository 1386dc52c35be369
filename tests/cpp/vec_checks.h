// Checks of the vector contract against scalar arithmetic. Include kernels/cpu/vec.h first.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>

#include "kernels/cpu/vec.h"

namespace mobilenet_ext::cpu {
namespace {

int failures = 0;

void expect(bool ok, const char* what, double expected, double got) {
  if (ok) return;
  if (++failures < 20) std::printf("FAILED %s: expected %.9g, got %.9g\n", what, expected, got);
}

bool same(float a, float b) { return (std::isnan(a) && std::isnan(b)) || a == b; }

// A 16-bit float with `exponent_bits`, read field by field.
float read_small_float(uint16_t bits, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const float sign = bits & 0x8000 ? -1.0f : 1.0f;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa ? std::numeric_limits<float>::quiet_NaN()
                    : sign * std::numeric_limits<float>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(float(mantissa), 1 - bias - mantissa_bits);
  return sign * std::ldexp(float(mantissa | (1 << mantissa_bits)), exponent - bias - mantissa_bits);
}

template <typename T>
float load_one(T value) {
  return load(&value, FirstLanes{1})[0];
}

template <typename T>
uint16_t store_one(float value) {
  T to;
  store(&to, Vec<float>{} + value, FirstLanes{1});
  return to.bits;
}

// Every value decodes exactly and encodes back; values between two neighbours go to the nearer,
// and to the even one from the middle.
template <typename T>
void check_small_float(const char* name, int exponent_bits) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const float expected = read_small_float(static_cast<uint16_t>(bits), exponent_bits);
    const float got = load_one(T{static_cast<uint16_t>(bits)});
    expect(same(expected, got), name, expected, got);
    const float again = load_one(T{store_one<T>(expected)});
    expect(same(expected, again), name, expected, again);
  }
  const int infinity = ((1 << exponent_bits) - 1) << (15 - exponent_bits);
  for (int bits = 0; bits + 1 < infinity; ++bits) {
    const double low = read_small_float(static_cast<uint16_t>(bits), exponent_bits);
    const double high = read_small_float(static_cast<uint16_t>(bits + 1), exponent_bits);
    const float middle = static_cast<float>((low + high) / 2);
    const float values[] = {std::nextafter(middle, 0.0f), middle,
                            std::nextafter(middle, std::numeric_limits<float>::infinity())};
    const int nearest[] = {bits, bits % 2 ? bits + 1 : bits, bits + 1};
    for (int i = 0; i < 3; ++i) {
      const int got = store_one<T>(values[i]);
      expect(got == nearest[i], "rounding", nearest[i], got);
      const int negative = store_one<T>(-values[i]);
      expect(negative == (nearest[i] | 0x8000), "rounding", nearest[i] | 0x8000, negative);
    }
  }
  expect(store_one<T>(3.4e38f) == infinity, "overflow", infinity, store_one<T>(3.4e38f));
}

// Partial loads fill with zeros, partial stores leave the rest alone.
template <typename E>
void check_partial(const char* name) {
  constexpr int kCount = kLanes<E>;
  E from[kCount];
  for (int i = 0; i < kCount; ++i) from[i] = static_cast<E>(i + 1);
  for (int n = 0; n <= kCount; ++n) {
    const Vec<E> v = load(from, FirstLanes{n});
    E to[kCount + 1];
    for (E& element : to) element = -1;
    store(to, v, FirstLanes{n});
    for (int i = 0; i < kCount; ++i) {
      expect(v[i] == (i < n ? from[i] : 0), name, i < n ? from[i] : 0, v[i]);
    }
    for (int i = 0; i <= kCount; ++i) {
      expect(to[i] == (i < n ? from[i] : -1), name, i < n ? from[i] : -1, to[i]);
    }
  }
}

void check_vectors() {
  check_small_float<Float16>("float16", 5);
  check_small_float<BFloat16>("bfloat16", 8);
  check_partial<float>("float");
  check_partial<double>("double");
  std::printf("vectors of %d bytes: %d failures\n", MOBILENET_EXT_VECTOR_BYTES, failures);
}

}  // namespace
}  // namespace mobilenet_ext::cpu
