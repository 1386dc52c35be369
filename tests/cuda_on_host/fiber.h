// Fibers: functions that can be left in the middle and taken up again, each on a stack of its own.
// Changing places is a dozen instructions on x86-64 and ucontext elsewhere; AddressSanitizer is
// told of it.
#pragma once

#include <cstddef>
#include <memory>

namespace cuda_on_host {

class Fiber {
 public:
  // entry() is the function of this fiber; it must never return.
  explicit Fiber(void (*entry)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Runs this fiber, from outside of any, until it calls leave().
  void enter();

  // Goes back to where this fiber was entered.
  void leave();

  // The first thing that the function of a fiber has to call.
  void arrive();

 private:
  struct Machine;  // registers, as the processor wants them
  std::unique_ptr<Machine> machine_;
  char* stack_;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
};

}  // namespace cuda_on_host
