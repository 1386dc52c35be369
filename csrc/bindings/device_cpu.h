// Runs the CPU kernels: torch's thread pool, workspace from torch, scratch kept by each thread.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>

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

// How far a phase has come. Whoever is free takes the next items; nobody counts on the others to
// come, so that a phase also ends when the pool lends fewer threads than were asked for.
struct alignas(cpu::kAlignment) PhaseProgress {
  std::atomic<int64_t> taken{0}, done{0};

  // Runs items until none are left to take, `most` at once, and waits for those of other threads.
  template <typename F>
  void share(int64_t items, int64_t most, F run) {
    for (int64_t i = (taken += most) - most; i < items; i = (taken += most) - most) {
      const int64_t end = std::min(i + most, items);
      run(i, end);
      done += end - i;
    }
    for (int spins = 0; done.load(std::memory_order_acquire) < items; ++spins) {
      if (spins > kSpins) std::this_thread::yield();
    }
  }

 private:
  static constexpr int kSpins =
      4096;  // some 10 us: a phase's items are about as long as each other
};

struct Cpu {
  static constexpr bool kHasNchw = false;

  static void run(MobileNetArgs args, const Tensor&) {
    args.workers = torch::stable::get_num_threads();
    run_program(cpu::kernels().mobilenet, args);
  }

  // Workspace and scratch stay with their threads: memory that is mapped, and often in a cache.
  template <typename Args>
  static void run(Args args, const Tensor&) {
    static thread_local ThreadScratch workspace;
    const cpu::Op<Args>& op = op_for(args);
    args.workspace = workspace.at_least(op.workspace_bytes(args));
    int64_t items[cpu::kMaxPhases], most = 1;
    for (int p = 0; p < cpu::kMaxPhases; ++p) {
      items[p] = op.phases[p].items ? op.phases[p].items(args) : 0;
      most = std::max(most, items[p]);
    }
    const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), most);
    const int64_t scratch_bytes = op.scratch_bytes(args);
    PhaseProgress progress[cpu::kMaxPhases];
    torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
      static thread_local ThreadScratch memory;
      void* scratch = memory.at_least(scratch_bytes);
      for (int p = 0; p < cpu::kMaxPhases; ++p) {
        const int64_t shares = threads == 1 ? 1 : kSharesPerThread * threads;
        const int64_t at_once = std::max<int64_t>(1, items[p] / shares);
        progress[p].share(items[p], at_once, [&](int64_t begin, int64_t end) {
          op.phases[p].run(args, begin, end, scratch);
        });
      }
    });
  }

 private:
  // Threads that were woken late leave some of their share to the others.
  static constexpr int64_t kSharesPerThread = 4;

  // Maps stay with the calling thread.
  template <typename Args>
  static void run_program(const cpu::Program<Args>& program, Args args) {
    static thread_local ThreadScratch workspace;
    args.workspace = workspace.at_least(program.workspace_bytes(args));
    const int64_t phases = program.phases(args), scratch_bytes = program.scratch_bytes(args);
    const std::unique_ptr<PhaseProgress[]> progress(new PhaseProgress[phases]);
    const int64_t threads =
        phases > 1 ? args.workers : std::min(args.workers, program.items(args, 0));
    torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
      static thread_local ThreadScratch memory;
      void* scratch = memory.at_least(scratch_bytes);
      for (int64_t phase = 0; phase < phases; ++phase) {
        progress[phase].share(program.items(args, phase), 1, [&](int64_t item, int64_t) {
          program.run(args, phase, item, scratch);
        });
      }
    });
  }

  static const auto& op_for(const DepthwiseConvArgs&) { return cpu::kernels().depthwise_conv; }
  static const auto& op_for(const DepthwiseConvBackwardArgs&) {
    return cpu::kernels().depthwise_conv_backward;
  }
  static const auto& op_for(const PointwiseConvArgs&) { return cpu::kernels().pointwise_conv; }
  static const auto& op_for(const PointwiseConvBackwardArgs&) {
    return cpu::kernels().pointwise_conv_backward;
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
  static const auto& op_for(const BatchNormAffineArgs&) { return cpu::kernels().batch_norm_affine; }
  static const auto& op_for(const BatchNormGradientMapArgs&) {
    return cpu::kernels().batch_norm_gradient_map;
  }
};

}  // namespace mobilenet_ext
