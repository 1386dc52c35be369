// The wording of every argument error.
#include "bindings/checks.h"

namespace mobilenet_ext {

namespace {

// Keeps every product of sizes that the kernels form far from overflow.
constexpr int64_t kMaxOption = int64_t{1} << 24;

void check_option(const char* op, const char* name, int64_t value, int64_t least) {
  if (value < least || value > kMaxOption) {
    fail(op, name, " must be in [", least, ", ", kMaxOption, "], got ", value);
  }
}

bool on_same_device(const Tensor& a, const Tensor& b) {
  return (a.is_cpu() && b.is_cpu()) || a.device() == b.device();
}

}  // namespace

std::string shape_text(const Tensor& t) {
  std::string text = "[";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d ? ", " : "") + std::to_string(t.size(d));
  return text + "]";
}

std::string dtype_text(ScalarType dtype) {
  std::string text = torch::headeronly::toString(dtype);
  if (text == "Float") return "float32";
  if (text == "Double") return "float64";
  if (text == "Half") return "float16";
  if (text == "BFloat16") return "bfloat16";
  return text;
}

std::string device_text(const Tensor& t) {
  if (t.is_cpu()) return "cpu";
  return (t.is_cuda() ? "cuda:" : "device ") + std::to_string(t.get_device_index());
}

void check_map(const char* op, const char* name, const Tensor& t) {
  if (t.dim() != 4) fail(op, name, " must be [N, C, H, W], got ", shape_text(t));
  if (t.size(1) < 1 || t.size(2) < 1 || t.size(3) < 1) {
    fail(op, name, " must be [N, C, H, W] with C, H, W >= 1, got ", shape_text(t));
  }
  switch (t.scalar_type()) {
    case ScalarType::Float:
    case ScalarType::Double:
    case ScalarType::BFloat16:
    case ScalarType::Half: return;
    default:
      fail(op, name, " must be float32, float64, bfloat16 or float16, got ",
           dtype_text(t.scalar_type()));
  }
}

void check_same_kind(const char* op, const char* name, const Tensor& t, const Tensor& input) {
  if (!on_same_device(t, input)) {
    fail(op, name, " must be on ", device_text(input), " like the input, got ", device_text(t));
  }
  if (t.scalar_type() != input.scalar_type()) {
    fail(op, name, " must be ", dtype_text(input.scalar_type()), " like the input, got ",
         dtype_text(t.scalar_type()));
  }
}

void check_map_like(const char* op, const char* name, const Tensor& t, const MapSize& shape,
                    const Tensor& input) {
  check_same_kind(op, name, t, input);
  const bool fits = t.dim() == 4 && t.size(0) == shape.n && t.size(1) == shape.c &&
                    t.size(2) == shape.h && t.size(3) == shape.w;
  if (!fits) {
    fail(op, name, " must be [N, C, H, W] = [", shape.n, ", ", shape.c, ", ", shape.h, ", ",
         shape.w, "], got ", shape_text(t));
  }
}

Tensor check_vector(const char* op, ArgumentName name, const Tensor& t, const Tensor& input) {
  if (t.dim() != 1 || t.size(0) != input.size(1)) {
    fail(op, name, " must be [C] = [", input.size(1), "], got ", shape_text(t));
  }
  if (t.scalar_type() != accumulator_type(input)) {
    fail(op, name, " must be ", dtype_text(accumulator_type(input)), " for a ",
         dtype_text(input.scalar_type()), " input, got ", dtype_text(t.scalar_type()));
  }
  if (!on_same_device(t, input)) {
    fail(op, name, " must be on ", device_text(input), " like the input, got ", device_text(t));
  }
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

OptionalTensor check_vector(const char* op, ArgumentName name, const OptionalTensor& t,
                            const Tensor& input) {
  OptionalTensor checked;
  if (t) checked.emplace(check_vector(op, name, *t, input));
  return checked;
}

void check_first_vector(const char* op, const char* name, const Tensor& t) {
  if (t.dim() != 1 || t.size(0) < 1) {
    fail(op, name, " must be [C] with C >= 1, got ", shape_text(t));
  }
  if (t.scalar_type() != ScalarType::Float && t.scalar_type() != ScalarType::Double) {
    fail(op, name, " must be float32 or float64, got ", dtype_text(t.scalar_type()));
  }
}

Tensor check_vector_like(const char* op, const char* name, const Tensor& t, const char* first_name,
                         const Tensor& first) {
  if (t.dim() != 1 || t.size(0) != first.size(0)) {
    fail(op, name, " must be [C] = [", first.size(0), "] like ", first_name, ", got ",
         shape_text(t));
  }
  if (t.scalar_type() != first.scalar_type()) {
    fail(op, name, " must be ", dtype_text(first.scalar_type()), " like ", first_name, ", got ",
         dtype_text(t.scalar_type()));
  }
  if (!on_same_device(t, first)) {
    fail(op, name, " must be on ", device_text(first), " like ", first_name, ", got ",
         device_text(t));
  }
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

void check_together(const char* op, ArgumentName first_name, ArgumentName second_name, bool first,
                    bool second) {
  if (first != second) {
    fail(op, first_name, " and ", second_name, " must be given together, got only the ",
         first ? "first" : "second");
  }
}

void check_activation(const char* op, ArgumentName name, int64_t activation) {
  if (activation < 0 || activation > 2) {
    fail(op, name, " must be 0 (none), 1 (relu) or 2 (relu6), got ", activation);
  }
}

MapVectors check_map_vectors(const char* op, const char* prefix, const OptionalTensor& scale,
                             const OptionalTensor& shift, int64_t activation, const Tensor& input) {
  check_together(op, {prefix, "scale"}, {prefix, "shift"}, !!scale, !!shift);
  check_activation(op, {prefix, "activation"}, activation);
  if (activation != 0 && !scale) {
    fail(op, prefix, "activation must be 0 (none) without ", prefix, "scale and ", prefix,
         "shift, got ", activation);
  }
  return {check_vector(op, {prefix, "scale"}, scale, input),
          check_vector(op, {prefix, "shift"}, shift, input), static_cast<Activation>(activation)};
}

GradientVectors check_gradient_vectors(const char* op, const OptionalTensor& grad_scale,
                                       const OptionalTensor& raw_scale,
                                       const OptionalTensor& raw_shift, const Tensor& input) {
  check_together(op, "raw_scale", "raw_shift", !!raw_scale, !!raw_shift);
  return {check_vector(op, "grad_scale", grad_scale, input),
          check_vector(op, "raw_scale", raw_scale, input),
          check_vector(op, "raw_shift", raw_shift, input)};
}

ConvShape conv_shape(const char* op, const Tensor& input, int64_t kernel,
                     const ConvOptions& options) {
  check_option(op, "kernel size", kernel, 1);
  check_option(op, "stride", options.stride, 1);
  check_option(op, "dilation", options.dilation, 1);
  check_option(op, "pad_left", options.pad_left, 0);
  check_option(op, "pad_right", options.pad_right, 0);
  check_option(op, "pad_top", options.pad_top, 0);
  check_option(op, "pad_bottom", options.pad_bottom, 0);
  ConvShape s = {input.size(0),
                 input.size(1),
                 input.size(2),
                 input.size(3),
                 0,
                 0,
                 kernel,
                 options.stride,
                 options.dilation,
                 options.pad_left,
                 options.pad_right,
                 options.pad_top,
                 options.pad_bottom};
  const int64_t height = s.in_height + s.pad_top + s.pad_bottom;
  const int64_t width = s.in_width + s.pad_left + s.pad_right;
  s.out_height = conv_output_size(height, kernel_extent(s), s.stride);
  s.out_width = conv_output_size(width, kernel_extent(s), s.stride);
  if (s.out_height < 1 || s.out_width < 1) {
    fail(op, "padded input must be at least as large as the dilated kernel, ", kernel_extent(s),
         " x ", kernel_extent(s), ", got ", height, " x ", width);
  }
  return s;
}

ConvShape check_conv(const char* op, const Tensor& input, const Tensor& weight,
                     const ConvOptions& options) {
  check_map(op, "input", input);
  check_same_kind(op, "weight", weight, input);
  const int64_t channels = input.size(1);
  const int64_t kernel = weight.dim() == 4 ? weight.size(3) : 3;
  const bool fits = weight.dim() == 4 && weight.size(0) == channels && weight.size(1) == 1 &&
                    weight.size(2) == kernel && kernel >= 1;
  if (!fits) {
    fail(op, "weight must be [C, 1, K, K] = [", channels, ", 1, ", kernel, ", ", kernel, "], got ",
         shape_text(weight));
  }
  return conv_shape(op, input, kernel, options);
}

}  // namespace mobilenet_ext
