// The whole CPU interface: for each op its work items, grouped into phases, and the memory it
// wants. A phase's items are independent and may run on any threads in any order; a phase starts
// when the one before has ended. The split depends on the shape and on the size of the L2 cache,
// never on the number of threads, so that results are bitwise the same for any number of them.
#pragma once

#include "kernels/batch_norm.h"
#include "kernels/depthwise_conv.h"
#include "kernels/mobilenet.h"
#include "kernels/pointwise_conv.h"

namespace mobilenet_ext::cpu {

template <typename Args>
struct Phase {
  int64_t (*items)(const Args&);
  // Items [begin, end); `scratch` is this thread's, of scratch_bytes.
  void (*run)(const Args&, int64_t begin, int64_t end, void* scratch);
};

inline constexpr int kMaxPhases = 4;
inline constexpr int64_t kAlignment = 64;  // of workspace and scratch: a cache line

template <typename Args>
struct Op {
  int64_t (*workspace_bytes)(const Args&);  // shared by all threads
  int64_t (*scratch_bytes)(const Args&);    // for each thread
  Phase<Args> phases[kMaxPhases];           // unused ones are null
};

// An op of many phases: a whole network. Its items are larger than a phase is long in an Op, and
// args.workers tells the split how many there will be; results do not depend on it.
template <typename Args>
struct Program {
  void (*plan)(Args&);  // first of all
  int64_t (*workspace_bytes)(const Args&);
  int64_t (*scratch_bytes)(const Args&);
  int64_t (*phases)(const Args&);
  int64_t (*items)(const Args&, int64_t phase);
  void (*run)(const Args&, int64_t phase, int64_t item, void* scratch);
};

// One table per instruction set.
struct KernelTable {
  const char* name;
  Op<DepthwiseConvArgs> depthwise_conv;
  Op<DepthwiseConvBackwardArgs> depthwise_conv_backward;
  Op<PointwiseConvArgs> pointwise_conv;
  Op<PointwiseConvBackwardArgs> pointwise_conv_backward;
  Op<BatchNormStatisticsArgs> batch_norm_statistics;
  Op<ScaleShiftActArgs> scale_shift_act;
  Op<ScaleShiftActBackwardReduceArgs> scale_shift_act_backward_reduce;
  Op<ScaleShiftActBackwardArgs> scale_shift_act_backward;
  Op<BatchNormAffineArgs> batch_norm_affine;
  Op<BatchNormGradientMapArgs> batch_norm_gradient_map;
  Program<MobileNetArgs> mobilenet;
};

// The table in use: the best for this CPU, unless select_kernels() chose another.
const KernelTable& kernels();

// The tables this CPU can run, best last; `count` receives how many.
const KernelTable* const* available_kernels(int* count);

// Makes the named table the one in use; false if this CPU cannot run it or there is none.
bool select_kernels(const char* name);

// The size of a core's L2 cache: how much is staged there at a time follows from it, and with that,
// as with the instruction set, the last bits of sums.
int64_t l2_cache_bytes();

// The size of the last cache before memory: what an op leaves there, the next one finds. Maps that
// it does not hold are stored in another order, and so their sums have other last bits, too.
int64_t last_cache_bytes();

}  // namespace mobilenet_ext::cpu
