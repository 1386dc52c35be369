// Every check of an op's arguments and its wording: `op: argument must be <expected>, got <got>`.
// One front function serves all devices, so no mode can go round these.
#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

#include "bindings/tensor.h"
#include "kernels/depthwise_conv.h"

namespace mobilenet_ext {

// What an argument is called in the schema, in two parts; only a failing check puts it together.
struct ArgumentName {
  const char *prefix, *name;
  ArgumentName(const char* whole) : prefix(""), name(whole) {}  // implicit: most are one part
  ArgumentName(const char* before, const char* rest) : prefix(before), name(rest) {}
};

inline std::string text_of(const char* text) { return text; }
inline std::string text_of(const std::string& text) { return text; }
inline std::string text_of(const ArgumentName& name) { return text_of(name.prefix) + name.name; }
template <typename Integer, typename = std::enable_if_t<std::is_integral_v<Integer>>>
std::string text_of(Integer value) {
  return std::to_string(value);
}

// Without a stream: those of a libstdc++ that was linked statically, as some compilers do, find the
// locale of another one that Python has loaded, and crash.
template <typename... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  throw std::runtime_error(((std::string(op) + ": ") + ... + text_of(parts)));
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
Tensor check_vector(const char* op, ArgumentName name, const Tensor& t, const Tensor& input);
OptionalTensor check_vector(const char* op, ArgumentName name, const OptionalTensor& t,
                            const Tensor& input);

// A vector [C] of float32 or float64, which the op's other vectors have to be like.
void check_first_vector(const char* op, const char* name, const Tensor& t);

// A vector like `first`, which is called `first_name`; returns it dense.
Tensor check_vector_like(const char* op, const char* name, const Tensor& t, const char* first_name,
                         const Tensor& first);

// Two arguments that only make sense together.
void check_together(const char* op, ArgumentName first_name, ArgumentName second_name, bool first,
                    bool second);

void check_activation(const char* op, ArgumentName name, int64_t activation);

// A checked scale, shift and activation, and the tensors behind them.
struct MapVectors {
  OptionalTensor scale, shift;
  Activation activation;
  ScaleShiftAct map() const { return {data_of(scale), data_of(shift), activation}; }
};

// `prefix` is what stands before "scale", "shift" and "activation" in the schema.
MapVectors check_map_vectors(const char* op, const char* prefix, const OptionalTensor& scale,
                             const OptionalTensor& shift, int64_t activation, const Tensor& input);

// A checked gradient map, and the tensors behind it.
struct GradientVectors {
  OptionalTensor grad_scale, raw_scale, raw_shift;
  GradientMap map() const { return {data_of(grad_scale), data_of(raw_scale), data_of(raw_shift)}; }
};

GradientVectors check_gradient_vectors(const char* op, const OptionalTensor& grad_scale,
                                       const OptionalTensor& raw_scale,
                                       const OptionalTensor& raw_shift, const Tensor& input);

struct ConvOptions {
  int64_t stride, pad_left, pad_right, pad_top, pad_bottom, dilation;
};

// The geometry, once the options are known to be good, and to fit a checked input.
ConvShape conv_shape(const char* op, const Tensor& input, int64_t kernel,
                     const ConvOptions& options);

// The same, once a depthwise weight is known to fit too.
ConvShape check_conv(const char* op, const Tensor& input, const Tensor& weight,
                     const ConvOptions& options);

}  // namespace mobilenet_ext
