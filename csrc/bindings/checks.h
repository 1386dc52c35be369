// Every check of an op's arguments and its wording: `op: argument must be <expected>, got <got>`.
// One front function serves all devices, so no mode can go round these.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "bindings/tensor.h"
#include "kernels/depthwise_conv.h"

namespace mobilenet_ext {

template <typename... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

std::string shape_text(const Tensor& t);
std::string dtype_text(ScalarType dtype);
std::string device_text(const Tensor& t);

// A non-empty-channel map [N, C, H, W] of a supported dtype.
void check_map(const char* op, const char* name, const Tensor& t);

// `t` goes with `input`: same device and dtype.
void check_same_kind(const char* op, const char* name, const Tensor& t, const Tensor& input);

// `t` is a map of shape [n, c, h, w] that goes with `input`.
void check_map_like(const char* op, const char* name, const Tensor& t, const MapSize& shape,
                    const Tensor& input);

// A per-channel vector [C] of the accumulator dtype; returns it dense.
Tensor check_vector(const char* op, const char* name, const Tensor& t, const Tensor& input);
OptionalTensor check_vector(const char* op, const char* name, const OptionalTensor& t,
                            const Tensor& input);

// Two arguments that only make sense together.
void check_together(const char* op, const char* names, bool first, bool second);

Activation check_activation(const char* op, const char* name, int64_t code, bool has_map);

struct ConvOptions {
  int64_t stride, pad_left, pad_right, pad_top, pad_bottom, dilation;
};

// The geometry, once input, weight and options are known to fit together.
ConvShape check_conv(const char* op, const Tensor& input, const Tensor& weight,
                     const ConvOptions& options);

}  // namespace mobilenet_ext
