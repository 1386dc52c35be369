// Runs the CUDA kernels on the host: on copies of all buffers, under several orders of threads and
// blocks, which must all give the same bits.
#pragma once

#include <algorithm>
#include <deque>

#include "bindings/cuda_ops.h"
#include "buffers.h"
#include "runtime.h"

namespace mobilenet_ext {

using cuda_on_host::Block;
using cuda_on_host::kOrders;
using cuda_on_host::Order;

struct CudaOnHost {
  static constexpr bool kHasNchw = true;
  static constexpr bool kHasPointwise = false;

  template <typename Args>
  static void run(const Args& args, const Tensor&) {
    std::deque<Block> expected;
    for (const Order& order : kOrders) {
      std::deque<Block> blocks;
      run_in(args, order, blocks);
      if (expected.empty()) {
        expected.swap(blocks);
      } else {
        compare(args, expected, order, blocks);
      }
    }
    size_t next = 0;
    Args results = args;
    visit_buffers(results, [&](const std::string&, auto& pointer, int64_t) {
      if (pointer) copy_result(expected[next++], pointer);
    });
  }

 private:
  static void copy_result(const Block&, const void*) {}
  static void copy_result(const Block& block, void* to) {
    std::copy_n(static_cast<const char*>(block.data()), block.bytes(), static_cast<char*>(to));
  }

  static bool is_input(const void* const&) { return true; }
  static bool is_input(void* const&) { return false; }

  // Fills `blocks` with the buffers in the order that visit_buffers has them.
  template <typename Args>
  static void run_in(Args args, const Order& order, std::deque<Block>& blocks) {
    const Block workspace("workspace", nullptr, false, CudaKernels::workspace_bytes(args));
    const Args originals = args;
    visit_buffers(args, [&](const std::string& name, auto& pointer, int64_t bytes) {
      if (!pointer) return;
      blocks.emplace_back(name, pointer, is_input(pointer), bytes);
      pointer = blocks.back().data();
    });
    args.workspace = workspace.data();
    const char* op = CudaKernels::name_of(args);
    cuda_on_host::set_order(order);
    const cudaError_t error = CudaKernels::launch(args, nullptr);
    if (error != cudaSuccess) {
      fail(op, "CUDA kernels must start, got ", cudaGetErrorName(error), " on the host");
    }
    check_intact(op, workspace);
    for (const Block& block : blocks) check_intact(op, block);
    check_inputs(op, originals, blocks);
  }

  static void check_intact(const char* op, const Block& block) {
    if (!block.intact()) fail(op, "a kernel has written outside of ", block.name());
  }

  template <typename Args>
  static void check_inputs(const char* op, Args args, const std::deque<Block>& blocks) {
    size_t next = 0;
    visit_buffers(args, [&](const std::string& name, auto& pointer, int64_t) {
      if (!pointer) return;
      const Block& block = blocks[next++];
      if (is_input(pointer) && !block.equals(pointer)) fail(op, "a kernel has changed ", name);
    });
  }

  template <typename Args>
  static void compare(const Args& args, const std::deque<Block>& expected, const Order& order,
                      const std::deque<Block>& blocks) {
    for (size_t i = 0; i < expected.size(); ++i) {
      if (expected[i].equals(blocks[i].data())) continue;
      fail(CudaKernels::name_of(args), expected[i].name(),
           " must not depend on the order of threads", ", got other bits in the order ", order.name,
           " than in the order ", kOrders[0].name);
    }
  }
};

}  // namespace mobilenet_ext
