// Runs the CPU kernels: torch's thread pool, workspace and scratch kept by each thread.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>

#include "bindings/huge_pages.h"
#include "bindings/tensor.h"
#include "kernels/cpu/kernels.h"
#include "kernels/image_patches.h"

namespace mobilenet_ext {

class ThreadScratch {
 public:
  ThreadScratch() = default;
  ThreadScratch(const ThreadScratch&) = delete;
  ThreadScratch& operator=(const ThreadScratch&) = delete;
  ~ThreadScratch() { free(); }

  // At least `bytes`, aligned; valid until this thread asks for more.
  void* at_least(int64_t bytes) {
    if (bytes > bytes_) {
      free();
      memory_ = is_large(bytes) ? map_huge_pages(bytes) : std::aligned_alloc(kAlignment, bytes);
      if (!memory_) throw std::bad_alloc();
      bytes_ = bytes;
    }
    return memory_;
  }

 private:
  static constexpr int64_t kAlignment = cpu::kAlignment;  // which divides what the kernels ask for

  static bool is_large(int64_t bytes) { return bytes > kHugePage / 2; }

  void free() {
    is_large(bytes_) ? unmap_huge_pages(memory_, bytes_) : std::free(memory_);
    memory_ = nullptr;
    bytes_ = 0;
  }

  void* memory_ = nullptr;
  int64_t bytes_ = 0;
};

// How far the phases of an op have come. Each thread has a run of a phase's items of its own, which
// is the same part of a map in one phase as in the next, and still in its cache; when it is
// through, it takes what others have left. Nobody counts on the others to come, so that a phase
// also ends when the pool lends fewer threads than were asked for.
class Progress {
 public:
  Progress(int64_t phases, int64_t threads)
      : threads_(threads), counters_(new Counter[phases * (threads + 1)]) {}

  void start(int64_t phase, int64_t items) {
    Counter* const runs = counters_.get() + phase * (threads_ + 1);
    for (int64_t t = 0; t < threads_; ++t)
      runs[t].set(items * t / threads_, items * (t + 1) / threads_);
    runs[threads_].set(0, items);
  }

  // Runs items until none are left to take, `most` at once, and waits for those of other threads.
  template <typename F>
  void share(int64_t phase, int64_t thread, int64_t most, F run) {
    Counter* const runs = counters_.get() + phase * (threads_ + 1);
    Counter& done = runs[threads_];
    for (int64_t t = thread; t < thread + threads_; ++t) {
      Counter& from = runs[t < threads_ ? t : t - threads_];
      for (int64_t i = from.add(most); i < from.end; i = from.add(most)) {
        const int64_t end = std::min(i + most, from.end);
        run(i, end);
        done.add(end - i);
      }
    }
    for (int spins = 0; done.value.load(std::memory_order_acquire) < done.end; ++spins) {
      if (spins > kSpins) std::this_thread::yield();
    }
  }

 private:
  struct alignas(cpu::kAlignment) Counter {
    std::atomic<int64_t> value{0};
    int64_t end = 0;

    void set(int64_t begin, int64_t to) {
      value.store(begin, std::memory_order_relaxed);
      end = to;
    }
    // What it was before.
    int64_t add(int64_t count) { return (value += count) - count; }
  };
  // Some 10 us: a phase's items are about as long as each other.
  static constexpr int kSpins = 4096;

  int64_t threads_;
  std::unique_ptr<Counter[]> counters_;  // of each phase: each thread's run, and what is done
};

struct Cpu {
  static constexpr bool kHasNchw = false;
  static constexpr bool kHasPointwise = true;

  // An image of so many multiply-adds in its products is worth that threads wait for each other.
  static constexpr int64_t kMinSharedProducts = 8 * 1000 * 1000;

  // Threads take whole images. Those that would not be even among them they share.
  static void run(MobileNetArgs& args, const Tensor&) {
    args.workers = torch::stable::get_num_threads();
    const bool is_worth_sharing = pointwise_products(args) >= kMinSharedProducts;
    const int64_t rest = is_worth_sharing ? args.batch % args.workers : 0;
    for (const int64_t images : {args.batch - rest, rest}) {
      if (images == 0) continue;
      args.batch = images;
      run_program(cpu::kernels().mobilenet, args);
      args.image += images * args.image_strides[0];
      args.output += images * args.outputs;
    }
  }

  // Only copied; the networks on a CPU have a stem that needs no patches.
  static void run(const ImagePatchesArgs& args, const Tensor&) {
    switch (element_bytes(args.dtype)) {
      case 2: return copy_patches<uint16_t>(args);
      case 4: return copy_patches<uint32_t>(args);
      default: return copy_patches<uint64_t>(args);
    }
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
    Progress progress(cpu::kMaxPhases, threads);
    for (int p = 0; p < cpu::kMaxPhases; ++p) progress.start(p, items[p]);
    torch::stable::parallel_for(0, threads, 1, [&](int64_t thread, int64_t) {
      void* scratch = scratch_of_thread(scratch_bytes);
      for (int p = 0; p < cpu::kMaxPhases; ++p) {
        const int64_t shares = threads == 1 ? 1 : kSharesPerThread * threads;
        const int64_t at_once = std::max<int64_t>(1, items[p] / shares);
        progress.share(p, thread, at_once, [&](int64_t begin, int64_t end) {
          op.phases[p].run(args, begin, end, scratch);
        });
      }
    });
  }

 private:
  template <typename T>
  static void copy_patches(const ImagePatchesArgs& args) {
    const ConvShape& s = args.shape;
    const int64_t rows = s.batch * s.out_height;
    torch::stable::parallel_for(0, rows, 1, [&](int64_t first, int64_t end) {
      for (int64_t row = first; row < end; ++row) {
        const int64_t image = row / s.out_height, y = row % s.out_height;
        const int64_t size = s.in_height * s.in_width * s.channels;
        const T* from = static_cast<const T*>(args.input) + image * size;
        T* to = static_cast<T*>(args.output) + row * s.out_width * args.columns;
        for (int column = 0; column < args.columns; column += kPatchLanes, to += kPatchLanes) {
          const PatchLanes<T, kPatchLanes> lanes(s, from, y, column);
          for (int x = 0; x < s.out_width; ++x) {
            for (int v = 0; v < kPatchLanes; ++v) to[x * args.columns + v] = lanes.at(x, v);
          }
        }
      }
    });
  }

  static void* scratch_of_thread(int64_t bytes) {
    static thread_local ThreadScratch memory;
    return memory.at_least(bytes);
  }

  // Threads that were woken late leave some of their share to the others.
  static constexpr int64_t kSharesPerThread = 4;

  // Maps stay with the calling thread.
  template <typename Args>
  static void run_program(const cpu::Program<Args>& program, Args& args) {
    static thread_local ThreadScratch workspace;
    program.plan(args);
    args.workspace = workspace.at_least(program.workspace_bytes(args));
    const int64_t phases = program.phases(args), scratch_bytes = program.scratch_bytes(args);
    const int64_t threads =
        phases > 1 ? args.workers : std::min(args.workers, program.items(args, 0));
    if (threads == 1) return run_alone(program, args, scratch_bytes);
    Progress progress(phases, threads);
    for (int64_t p = 0; p < phases; ++p) progress.start(p, program.items(args, p));
    torch::stable::parallel_for(0, threads, 1, [&](int64_t thread, int64_t) {
      void* scratch = scratch_of_thread(scratch_bytes);
      for (int64_t phase = 0; phase < phases; ++phase) {
        progress.share(phase, thread, 1,
                       [&](int64_t item, int64_t) { program.run(args, phase, item, scratch); });
      }
    });
  }

  template <typename Args>
  static void run_alone(const cpu::Program<Args>& program, const Args& args,
                        int64_t scratch_bytes) {
    void* scratch = scratch_of_thread(scratch_bytes);
    const int64_t phases = program.phases(args);
    for (int64_t phase = 0; phase < phases; ++phase) {
      const int64_t items = program.items(args, phase);
      for (int64_t item = 0; item < items; ++item) program.run(args, phase, item, scratch);
    }
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
