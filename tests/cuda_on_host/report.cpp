// The runtime's reports as C functions, for Python.
#include <iterator>

#include "cuda_runtime_api.h"
#include "runtime.h"

namespace cuda_on_host {

static int fault_at_work = 0;

bool planted(int fault) { return fault == fault_at_work; }

}  // namespace cuda_on_host

extern "C" {

// What these return stays valid until the next call.
const char* cuda_on_host_launched_kernels() {
  static std::string text;
  text = cuda_on_host::launched_kernels();
  return text.c_str();
}

const char* cuda_on_host_reached_barriers() {
  static std::string text;
  text = cuda_on_host::reached_barriers();
  return text.c_str();
}

void cuda_on_host_ignore_barrier(const char* site) { cuda_on_host::ignore_barrier(site); }

// From now on no fault but this one is at work; 0: none.
void cuda_on_host_plant(int fault) { cuda_on_host::fault_at_work = fault; }

int cuda_on_host_orders() { return static_cast<int>(std::size(cuda_on_host::kOrders)); }
}
