// Runs the CPU kernels: torch's thread pool, workspace from torch, scratch kept by each thread.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>

#include "bindings/tensor.h"
#include "kernels/cpu/kernels.h"

namespace mobilenet_ext {

class ThreadScratch {
 public:
  // At least `bytes`, aligned; valid until this thread asks for more.
  void* at_least(int64_t bytes) {
    if (bytes > bytes_) {
      memory_.reset(static_cast<char*>(::operator new(bytes, kAlign)));
      bytes_ = bytes;
    }
    return memory_.get();
  }

 private:
  static constexpr std::align_val_t kAlign{cpu::kAlignment};
  struct Delete {
    void operator()(char* memory) const { ::operator delete(memory, kAlign); }
  };
  std::unique_ptr<char, Delete> memory_;
  int64_t bytes_ = 0;
};

struct Cpu {
  template <typename Args>
  static void run(Args args, const Tensor& like) {
    const cpu::Op<Args>& op = op_for(args);
    const int64_t bytes = op.workspace_bytes(args);
    const Tensor workspace = empty_vector(like, ScalarType::Byte, bytes);
    args.workspace = workspace.mutable_data_ptr();
    const int64_t scratch_bytes = op.scratch_bytes(args);
    for (const cpu::Phase<Args>& phase : op.phases) {
      const int64_t items = phase.items ? phase.items(args) : 0;
      if (items == 0) continue;
      torch::stable::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
        static thread_local ThreadScratch scratch;
        phase.run(args, begin, end, scratch.at_least(scratch_bytes));
      });
    }
  }

 private:
  static const auto& op_for(const DepthwiseConvArgs&) { return cpu::kernels().depthwise_conv; }
  static const auto& op_for(const DepthwiseConvBackwardArgs&) {
    return cpu::kernels().depthwise_conv_backward;
  }
  static const auto& op_for(const BatchNormStatisticsArgs&) {
    return cpu::kernels().batch_norm_statistics;
  }
  static const auto& op_for(const ScaleShiftActArgs&) { return cpu::kernels().scale_shift_act; }
  static const auto& op_for(const ScaleShiftActBackwardReduceArgs&) {
    return cpu::kernels().scale_shift_act_backward_reduce;
  }
  static const auto& op_for(const ScaleShiftActBackwardArgs&) {
    return cpu::kernels().scale_shift_act_backward;
  }
};

}  // namespace mobilenet_ext
