// The scheduler: runs each thread of a block up to its next barrier, in the order asked for, then
// lets those go on whose barrier is complete. Kernels never leave the one OS thread they start on.
#include "runtime.h"

#include <dlfcn.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "cuda_runtime_api.h"
#include "fiber.h"
#include "shared_memory.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_host {

namespace {

constexpr unsigned int kMaxBlockThreads = 1024;
constexpr unsigned int kMaxGridBlocks = 0x7fffffff;

enum class State { kReady, kAtBarrier, kInExchange, kFinished };

struct Thread {
  Fiber* fiber = nullptr;  // none before it starts and after it has finished
  State state = State::kReady;
  dim3 index;
  Site site = {"", 0};
  Copies copies;
  // Of an exchange within a warp:
  unsigned int mask = 0;
  const void* value = nullptr;
  void* result = nullptr;
  int lane = 0;
  size_t bytes = 0;
};

// All that the runtime knows.
struct Runtime {
  Order order = kOrders[0];
  std::set<const void*> kernels;
  std::set<std::string> barriers;
  Site last_barrier = {"", 0};
  std::string ignored;
  std::vector<std::unique_ptr<Fiber>> fibers;  // every one there is
  std::vector<Fiber*> idle;
  // While a kernel runs:
  const void* kernel = nullptr;
  const std::function<void()>* body = nullptr;
  std::vector<Thread> threads;
  int current = 0;
  std::mt19937 random;
};

Runtime runtime;

std::string name_of(const void* kernel) {
  Dl_info info;
  const bool found = dladdr(kernel, &info) && info.dli_sname && info.dli_saddr == kernel;
  return found ? info.dli_sname : "a kernel without a name";
}

std::string text_of(const Site& site) { return site.file + (":" + std::to_string(site.line)); }

std::vector<int> in_order(int count) {
  std::vector<int> indices(count);
  std::iota(indices.begin(), indices.end(), 0);
  if (runtime.order.kind == Order::Kind::kReverse) std::reverse(indices.begin(), indices.end());
  if (runtime.order.kind == Order::Kind::kShuffled) {
    std::shuffle(indices.begin(), indices.end(), runtime.random);
  }
  return indices;
}

Thread& this_thread() { return runtime.threads[runtime.current]; }

// What a fiber runs: one thread after another.
void run_threads() {
  Fiber* const fiber = this_thread().fiber;
  fiber->arrive();
  for (;;) {
    (*runtime.body)();
    this_thread().state = State::kFinished;
    fiber->leave();
  }
}

// Runs a thread up to where it waits or ends.
void resume(int index) {
  Thread& thread = runtime.threads[index];
  if (!thread.fiber) {
    if (runtime.idle.empty()) {
      runtime.fibers.push_back(std::make_unique<Fiber>(&run_threads));
      runtime.idle.push_back(runtime.fibers.back().get());
    }
    thread.fiber = runtime.idle.back();
    runtime.idle.pop_back();
  }
  runtime.current = index;
  threadIdx = thread.index;
  thread.fiber->enter();
  if (thread.state != State::kFinished) return;
  if (thread.copies.are_pending()) {
    throw std::runtime_error("cuda_on_host: copies not waited for in " + name_of(runtime.kernel));
  }
  runtime.idle.push_back(thread.fiber);
  thread.fiber = nullptr;
}

bool is_at(const Thread& thread, State state, const Site& site) {
  if (thread.state != state || thread.site.line != site.line) return false;
  return thread.site.file == site.file || std::strcmp(thread.site.file, site.file) == 0;
}

// The threads of `first`'s warp that it exchanges values with, if all of them are there.
std::vector<int> complete_exchange(int first) {
  const Thread& leader = runtime.threads[first];
  const int size = static_cast<int>(runtime.threads.size());
  const int warp = first / warpSize * warpSize;
  std::vector<int> partners;
  for (int i = warp; i < std::min(warp + warpSize, size); ++i) {
    if (!(leader.mask >> (i - warp) & 1u)) continue;
    const Thread& partner = runtime.threads[i];
    if (!is_at(partner, State::kInExchange, leader.site) || partner.mask != leader.mask) return {};
    partners.push_back(i);
  }
  const bool takes_part = std::find(partners.begin(), partners.end(), first) != partners.end();
  return takes_part ? partners : std::vector<int>();
}

bool release_exchanges() {
  bool released = false;
  const int size = static_cast<int>(runtime.threads.size());
  for (int i = 0; i < size; ++i) {
    if (runtime.threads[i].state != State::kInExchange) continue;
    const std::vector<int> partners = complete_exchange(i);
    const int warp = i / warpSize * warpSize;
    for (const int index : partners) {
      Thread& thread = runtime.threads[index];
      const int from = warp + thread.lane;
      const bool there = std::find(partners.begin(), partners.end(), from) != partners.end();
      std::memset(thread.result, 0xff, thread.bytes);
      if (there) std::memcpy(thread.result, runtime.threads[from].value, thread.bytes);
    }
    for (const int index : partners) runtime.threads[index].state = State::kReady;
    released |= !partners.empty();
  }
  return released;
}

std::string whereabouts(int index) {
  const Thread& thread = runtime.threads[index];
  const std::string name = "thread " + std::to_string(index);
  if (thread.state == State::kFinished) return name + " has returned";
  const char* what = thread.state == State::kAtBarrier ? "barrier" : "warp operation";
  return name + " waits at the " + what + " in " + text_of(thread.site);
}

// Lets all threads pass the barrier that they wait at; it is an error if they do not all do so.
void release_barrier() {
  const std::vector<Thread>& threads = runtime.threads;
  const int size = static_cast<int>(threads.size());
  int first = 0;
  while (threads[first].state == State::kFinished) ++first;
  int other = 0;
  while (other < size && is_at(threads[other], threads[first].state, threads[first].site)) ++other;
  if (other == size && threads[first].state == State::kAtBarrier) {
    for (Thread& thread : runtime.threads) thread.state = State::kReady;
    return;
  }
  std::string message = "cuda_on_host: barrier divergence in " + name_of(runtime.kernel);
  message += ", block " + std::to_string(blockIdx.x) + ": " + whereabouts(first);
  if (other < size) message += ", " + whereabouts(other);
  throw std::runtime_error(message);
}

bool all_finished() {
  return std::all_of(runtime.threads.begin(), runtime.threads.end(),
                     [](const Thread& thread) { return thread.state == State::kFinished; });
}

void run_block() {
  const unsigned int size = blockDim.x * blockDim.y * blockDim.z;
  runtime.threads.assign(size, Thread());
  for (unsigned int i = 0; i < size; ++i) {
    const unsigned int row = i / blockDim.x;
    runtime.threads[i].index = dim3(i % blockDim.x, row % blockDim.y, row / blockDim.y);
    runtime.threads[i].copies = Copies(runtime.order.copies_at_once);
  }
  spoil_shared_memory();
  for (;;) {
    for (const int index : in_order(static_cast<int>(size))) {
      if (runtime.threads[index].state == State::kReady) resume(index);
    }
    if (all_finished()) return;
    if (!release_exchanges()) release_barrier();
  }
}

// Whether the barrier is there; takes note of it.
bool reach(const Site& site) {
  if (site.line != runtime.last_barrier.line || site.file != runtime.last_barrier.file) {
    runtime.barriers.insert(text_of(site));
    runtime.last_barrier = site;
  }
  return runtime.ignored.empty() || text_of(site) != runtime.ignored;
}

}  // namespace

cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes,
                   const std::function<void()>& thread) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const bool fits = threads > 0 && threads <= kMaxBlockThreads && grid.x > 0 &&
                    grid.x <= kMaxGridBlocks && grid.y == 1 && grid.z == 1;
  if (!fits) return cudaErrorInvalidConfiguration;
  if (shared_bytes > 0) return cudaErrorInvalidValue;  // dynamic shared memory: not emulated
  runtime.kernels.insert(kernel);
  runtime.kernel = kernel;
  runtime.body = &thread;
  runtime.random.seed(runtime.order.seed);
  gridDim = grid;
  blockDim = block;
  try {
    for (const int index : in_order(static_cast<int>(grid.x))) {
      blockIdx = dim3(static_cast<unsigned int>(index), 0, 0);
      run_block();
    }
  } catch (...) {
    runtime.idle.clear();
    runtime.fibers.clear();
    throw;
  }
  return cudaSuccess;
}

void wait_for_block(Site site) {
  if (!reach(site)) return;
  Thread& thread = this_thread();
  thread.state = State::kAtBarrier;
  thread.site = site;
  thread.fiber->leave();
}

void exchange(unsigned int mask, const void* value, int lane, void* result, size_t bytes,
              Site site) {
  Thread& thread = this_thread();
  thread.state = State::kInExchange;
  thread.site = site;
  thread.mask = mask;
  thread.value = value;
  thread.lane = lane;
  thread.result = result;
  thread.bytes = bytes;
  thread.fiber->leave();
}

void wait_for_warp(unsigned int mask, Site site) {
  char nothing = 0, result;
  if (reach(site)) exchange(mask, &nothing, lane_of_this_thread(), &result, 1, site);
}

int lane_of_this_thread() { return runtime.current % warpSize; }
Copies& copies() { return this_thread().copies; }
void set_order(const Order& order) { runtime.order = order; }

std::string launched_kernels() {
  std::ostringstream lines;
  for (const void* kernel : runtime.kernels) {
    Dl_info library = {};
    dladdr(kernel, &library);
    const auto begin = static_cast<const char*>(library.dli_fbase);
    lines << std::hex << static_cast<const char*>(kernel) - begin << "\n";
  }
  return lines.str();
}

std::string reached_barriers() {
  std::string lines;
  for (const std::string& barrier : runtime.barriers) lines += barrier + "\n";
  return lines;
}

void ignore_barrier(const std::string& site) { runtime.ignored = site; }

}  // namespace cuda_on_host
