// Changing stacks: by hand on x86-64, since ucontext asks the kernel each time, which is slow.
#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace cuda_on_host {

namespace {

constexpr size_t kStackBytes = 256 * 1024;

// The stack that fibers are entered from.
const void* outside = nullptr;
size_t outside_bytes = 0;

void before_switch([[maybe_unused]] void** fake_stack, [[maybe_unused]] const void* stack,
                   [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
#endif
}

void after_switch([[maybe_unused]] void* fake_stack, [[maybe_unused]] const void** from,
                  [[maybe_unused]] size_t* bytes) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack, from, bytes);
#endif
}

}  // namespace

#ifdef __x86_64__

// Stores the stack pointer and the registers that a function must keep, and takes up others.
extern "C" void cuda_on_host_switch(void** from, void* to);
asm(R"(
  .text
  .globl cuda_on_host_switch
  .type cuda_on_host_switch, @function
cuda_on_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size cuda_on_host_switch, . - cuda_on_host_switch
)");

struct Fiber::Machine {
  void* inside;
  void* outside;

  void start(char* stack, void (*entry)()) {
    // Six registers, the address to return to, and a caller that does not exist.
    auto top = reinterpret_cast<uintptr_t*>(stack + kStackBytes);
    *--top = 0;
    *--top = reinterpret_cast<uintptr_t>(entry);
    for (int i = 0; i < 6; ++i) *--top = 0;
    inside = top;
  }
  void enter() { cuda_on_host_switch(&outside, inside); }
  void leave() { cuda_on_host_switch(&inside, outside); }
};

#else

struct Fiber::Machine {
  ucontext_t inside, outside;

  void start(char* stack, void (*entry)()) {
    getcontext(&inside);
    inside.uc_stack.ss_sp = stack;
    inside.uc_stack.ss_size = kStackBytes;
    inside.uc_link = nullptr;
    makecontext(&inside, entry, 0);
  }
  void enter() { swapcontext(&outside, &inside); }
  void leave() { swapcontext(&inside, &outside); }
};

#endif

Fiber::Fiber(void (*entry)()) : machine_(std::make_unique<Machine>()) {
  void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  stack_ = static_cast<char*>(memory);
  machine_->start(stack_, entry);
}

Fiber::~Fiber() {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
  munmap(stack_, kStackBytes);
}

void Fiber::enter() {
  void* fake_stack = nullptr;
  before_switch(&fake_stack, stack_, kStackBytes);
  machine_->enter();
  after_switch(fake_stack, nullptr, nullptr);
}

void Fiber::leave() {
  before_switch(&fake_stack_, outside, outside_bytes);
  machine_->leave();
  after_switch(fake_stack_, nullptr, nullptr);
}

void Fiber::arrive() { after_switch(nullptr, &outside, &outside_bytes); }

}  // namespace cuda_on_host
