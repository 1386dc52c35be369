// The runtime's reports as C functions, for Python.
#include <iterator>

#include "runtime.h"

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

int cuda_on_host_orders() { return static_cast<int>(std::size(cuda_on_host::kOrders)); }
}
