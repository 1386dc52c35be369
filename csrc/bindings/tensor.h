// The little that the bindings need of tensors, on torch's stable ABI: memory formats, allocation,
// element types. Kernels see dense memory in a Layout only; here is where all else is copied.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>

#include "bindings/map_pool.h"
#include "kernels/types.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // torch before 2.13
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace mobilenet_ext {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct MapSize {
  int64_t n, c, h, w;
  int64_t numel() const { return n * c * h * w; }
};

inline MapSize size_of(const Tensor& t) { return {t.size(0), t.size(1), t.size(2), t.size(3)}; }

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double: return DType::kFloat64;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Half: return DType::kFloat16;
    default: return DType::kFloat32;
  }
}

// The dtype of per-channel vectors and statistics that go with storage dtype `t`.
inline ScalarType accumulator_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// torch's suggest_memory_format: what an output computed from `t` should look like.
inline MemoryFormat memory_format_of(const Tensor& t) {
  int64_t least = 0;
  if (t.stride(1) == 0) return MemoryFormat::Contiguous;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (t.size(d) == 0 || t.stride(d) < least) return MemoryFormat::Contiguous;
    if (d == 0 && least == t.stride(1)) return MemoryFormat::Contiguous;
    least = t.size(d) > 1 ? t.stride(d) * t.size(d) : t.stride(d);
  }
  return MemoryFormat::ChannelsLast;
}

// The layout that the kernels of Device run in: that of the output if they have it. So a tensor
// that is dense in both ways, of one channel or of single pixels, has the layout that torch takes
// it for.
template <typename Device>
Layout layout_for(const Tensor& input) {
  const bool channels_last = memory_format_of(input) == MemoryFormat::ChannelsLast;
  return Device::kHasNchw && !channels_last ? Layout::kNchw : Layout::kNhwc;
}

// The dimensions from the innermost.
inline std::array<int64_t, 4> inner_to_outer(Layout layout) {
  if (layout == Layout::kNchw) return {3, 2, 1, 0};
  return {1, 3, 2, 0};
}

inline bool is_dense(const Tensor& t, Layout layout) {
  int64_t expected = 1;
  for (const int64_t d : inner_to_outer(layout)) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// `t` in dense memory of that layout: itself, or a copy.
inline Tensor to_layout(const Tensor& t, Layout layout) {
  if (is_dense(t, layout)) return t;
  const bool nchw = layout == Layout::kNchw;
  return torch::stable::contiguous(t, nchw ? MemoryFormat::Contiguous : MemoryFormat::ChannelsLast);
}

inline Tensor to_format(const Tensor& t, MemoryFormat format) {
  return format == MemoryFormat::ChannelsLast ? t : torch::stable::contiguous(t, format);
}

inline Tensor empty_strided(const Tensor& like, ScalarType dtype, int64_t dims,
                            const int64_t* sizes, const int64_t* strides) {
  int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  const int32_t code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, sizes, strides, code, device_type,
                                                         like.get_device_index(), &handle));
  return Tensor(handle);
}

// A tensor [N, C, H, W] like `like`, which is on the CPU, in a block of the pool.
inline Tensor pooled_map(const Tensor& like, const int64_t* sizes, const int64_t* strides,
                         MapPool::Block block) {
  const auto give_back = [](void* memory, void* bytes) {
    MapPool::get().give_back({memory, static_cast<int64_t>(reinterpret_cast<intptr_t>(bytes))});
  };
  const int32_t code =
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(like.scalar_type()));
  AtenTensorHandle handle = nullptr;
  // Should this fail, torch may have given the block back or not: then it is lost, not taken twice.
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_from_blob(block.memory, 4, sizes, strides, 0, code, aoti_torch_device_type_cpu(), -1,
                      &handle, aoti_torch_layout_strided(), nullptr, 0, give_back,
                      reinterpret_cast<void*>(static_cast<intptr_t>(block.bytes))));
  return Tensor(handle);
}

inline Tensor empty_map(const Tensor& like, const MapSize& s, Layout layout) {
  const int64_t sizes[] = {s.n, s.c, s.h, s.w};
  int64_t strides[4], stride = 1;
  for (const int64_t d : inner_to_outer(layout)) {
    strides[d] = stride;
    stride *= sizes[d];
  }
  const int64_t bytes = s.numel() * element_bytes(dtype_of(like));
  const bool is_large = like.is_cpu() && bytes >= MapPool::kLeastBytes;
  if (is_large && torch_from_blob) {
    const MapPool::Block block = MapPool::get().take(bytes);
    if (block.memory) return pooled_map(like, sizes, strides, block);
  }
  const Tensor t = empty_strided(like, like.scalar_type(), 4, sizes, strides);  // or says why not
  if (is_large) prefer_huge_pages(t.mutable_data_ptr(), bytes);
  return t;
}

inline Tensor empty_vector(const Tensor& like, ScalarType dtype, int64_t size) {
  const int64_t stride = 1;
  return empty_strided(like, dtype, 1, &size, &stride);
}

inline const void* data_of(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }

}  // namespace mobilenet_ext
