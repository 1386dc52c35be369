// The memory that an op may touch: each buffer of its arguments in a block of its own, at the same
// place relative to 64 bytes, between guards. Everything that is not an input's value is filled
// with 0xff, which is NaN in every floating-point type: guards, results, workspace. Reading a guard
// gives NaN; writing one is found by intact(); under AddressSanitizer both stop the program.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels/batch_norm.h"
#include "kernels/depthwise_conv.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace cuda_on_host {

class Block {
 public:
  // A copy of `bytes` bytes at `original`, or as many of NaN where there is no `contents`.
  Block(std::string name, const void* original, bool contents, int64_t bytes)
      : name_(std::move(name)), bytes_(bytes), is_input_(contents) {
    const int64_t offset = kGuard + reinterpret_cast<uintptr_t>(original) % kAlign;
    memory_.assign(kAlign + offset + bytes + kGuard, 0xff);
    begin_ = memory_.data() + kAlign - reinterpret_cast<uintptr_t>(memory_.data()) % kAlign;
    data_ = begin_ + offset;
    if (contents && bytes > 0) std::memcpy(data_, original, bytes);
    guard(true);
  }
  ~Block() { guard(false); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  const std::string& name() const { return name_; }
  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  bool is_input() const { return is_input_; }
  bool equals(const void* other) const {
    return bytes_ == 0 || std::memcmp(data_, other, bytes_) == 0;
  }

  // Nothing was written outside.
  bool intact() const {
    guard(false);
    bool intact = true;
    for (const unsigned char* at = begin_; at < data_; ++at) intact &= *at == 0xff;
    for (int64_t i = 0; i < kGuard; ++i) intact &= data_[bytes_ + i] == 0xff;
    guard(true);
    return intact;
  }

 private:
  static constexpr int64_t kAlign = 64, kGuard = 4096;

  void guard([[maybe_unused]] bool on) const {
#ifdef __SANITIZE_ADDRESS__
    if (on) {
      __asan_poison_memory_region(begin_, data_ - begin_);
      __asan_poison_memory_region(data_ + bytes_, kGuard);
    } else {
      __asan_unpoison_memory_region(memory_.data(), memory_.size());
    }
#endif
  }

  std::string name_;
  int64_t bytes_;
  bool is_input_;
  std::vector<unsigned char> memory_;
  unsigned char *begin_, *data_;
};

}  // namespace cuda_on_host

namespace mobilenet_ext {

// Calls visit(name, pointer, bytes) for every buffer of an op but its workspace. The pointer is to
// const for an input, and null for what is not there.
template <typename Map, typename Visit>
void visit_map(const char* name, Map& map, int64_t vector, Visit& visit) {
  const std::string prefix = name;
  visit(prefix + ".scale", map.scale, vector);
  visit(prefix + ".shift", map.shift, vector);
}

template <typename Visit>
void visit_gradient_map(GradientMap& map, int64_t vector, Visit& visit) {
  visit("gradient_map.grad_scale", map.grad_scale, vector);
  visit("gradient_map.raw_scale", map.raw_scale, vector);
  visit("gradient_map.raw_shift", map.raw_shift, vector);
}

// Sizes in bytes.
struct ConvBytes {
  int64_t input, output, weight, dense_weight, vector;

  template <typename Args>
  explicit ConvBytes(const Args& args) {
    const ConvShape& s = args.shape;
    const int64_t element = element_bytes(args.dtype), taps = s.kernel * s.kernel;
    input = s.batch * s.in_height * s.in_width * s.channels * element;
    output = s.batch * s.out_height * s.out_width * s.channels * element;
    dense_weight = s.channels * taps * element;
    const int64_t last =
        (s.channels - 1) * args.weight_channel_stride + (taps - 1) * args.weight_tap_stride;
    weight = (last + 1) * element;
    vector = s.channels * accumulator_bytes(args.dtype);
  }
};

template <typename Visit>
void visit_buffers(DepthwiseConvArgs& args, Visit visit) {
  const ConvBytes bytes(args);
  visit("input", args.input, bytes.input);
  visit("weight", args.weight, bytes.weight);
  visit_map("prologue", args.prologue, bytes.vector, visit);
  visit_map("epilogue", args.epilogue, bytes.vector, visit);
  visit("output", args.output, bytes.output);
  visit("mean", args.mean, bytes.vector);
  visit("var", args.var, bytes.vector);
}

template <typename Visit>
void visit_buffers(DepthwiseConvBackwardArgs& args, Visit visit) {
  const ConvBytes bytes(args);
  visit("grad_output", args.grad_output, bytes.output);
  visit("output", args.output, bytes.output);
  visit_map("epilogue", args.epilogue, bytes.vector, visit);
  visit_gradient_map(args.gradient_map, bytes.vector, visit);
  visit("input", args.input, bytes.input);
  visit("weight", args.weight, bytes.weight);
  visit_map("prologue", args.prologue, bytes.vector, visit);
  visit("input_mean", args.input_mean, bytes.vector);
  visit("grad_input", args.grad_input, bytes.input);
  visit("grad_weight", args.grad_weight, bytes.dense_weight);
  visit("grad_sum", args.grad_sum, bytes.vector);
  visit("grad_dot", args.grad_dot, bytes.vector);
}

template <typename Args>
int64_t map_bytes(const Args& args) {
  return args.pixels * args.channels * element_bytes(args.dtype);
}

template <typename Args>
int64_t vector_bytes(const Args& args) {
  return args.channels * accumulator_bytes(args.dtype);
}

template <typename Visit>
void visit_buffers(ImagePatchesArgs& args, Visit visit) {
  const ConvShape& s = args.shape;
  const int64_t element = element_bytes(args.dtype);
  visit("input", args.input, s.batch * s.in_height * s.in_width * s.channels * element);
  visit("output", args.output, s.batch * s.out_height * s.out_width * args.columns * element);
}

template <typename Visit>
void visit_buffers(BatchNormStatisticsArgs& args, Visit visit) {
  visit("input", args.input, map_bytes(args));
  visit("mean", args.mean, vector_bytes(args));
  visit("var", args.var, vector_bytes(args));
}

template <typename Visit>
void visit_buffers(ScaleShiftActArgs& args, Visit visit) {
  visit("input", args.input, map_bytes(args));
  visit_map("map", args.map, vector_bytes(args), visit);
  visit("output", args.output, map_bytes(args));
}

template <typename Visit>
void visit_buffers(ScaleShiftActBackwardReduceArgs& args, Visit visit) {
  visit("grad_output", args.grad_output, map_bytes(args));
  visit("input", args.input, map_bytes(args));
  visit_map("map", args.map, vector_bytes(args), visit);
  visit("mean", args.mean, vector_bytes(args));
  visit("grad_sum", args.grad_sum, vector_bytes(args));
  visit("grad_dot", args.grad_dot, vector_bytes(args));
}

template <typename Visit>
void visit_buffers(ScaleShiftActBackwardArgs& args, Visit visit) {
  visit("grad_output", args.grad_output, map_bytes(args));
  visit("input", args.input, map_bytes(args));
  visit_map("map", args.map, vector_bytes(args), visit);
  visit_gradient_map(args.gradient_map, vector_bytes(args), visit);
  visit("grad_input", args.grad_input, map_bytes(args));
}

template <typename Visit>
void visit_buffers(BatchNormAffineArgs& args, Visit visit) {
  visit("mean", args.mean, vector_bytes(args));
  visit("var", args.var, vector_bytes(args));
  visit("weight", args.weight, vector_bytes(args));
  visit("bias", args.bias, vector_bytes(args));
  visit("scale", args.scale, vector_bytes(args));
  visit("shift", args.shift, vector_bytes(args));
  visit("invstd", args.invstd, vector_bytes(args));
  visit("unbiased_var", args.unbiased_var, vector_bytes(args));
}

template <typename Visit>
void visit_buffers(BatchNormGradientMapArgs& args, Visit visit) {
  visit("grad_sum", args.grad_sum, vector_bytes(args));
  visit("grad_dot", args.grad_dot, vector_bytes(args));
  visit("scale", args.scale, vector_bytes(args));
  visit("mean", args.mean, vector_bytes(args));
  visit("invstd", args.invstd, vector_bytes(args));
  visit("grad_weight", args.grad_weight, vector_bytes(args));
  visit("raw_scale", args.raw_scale, vector_bytes(args));
  visit("raw_shift", args.raw_shift, vector_bytes(args));
}

}  // namespace mobilenet_ext
