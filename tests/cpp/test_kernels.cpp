// Every kernel table that this CPU can run.
#include "network_checks.h"
#include "pointwise_checks.h"

int main() {
  int count = 0, failures = 0;
  const auto* tables = mobilenet_ext::cpu::available_kernels(&count);
  for (int i = 0; i < count; ++i) {
    failures += mobilenet_ext::cpu::check_table(*tables[i]);
    failures += mobilenet_ext::cpu::check_pointwise(*tables[i]);
    failures += mobilenet_ext::cpu::check_network(*tables[i]);
  }
  return failures != 0;
}
