// The vector contract as every CPU has it.
#define MOBILENET_EXT_VECTOR_BYTES 16
#include "vec_checks.h"

int main() {
  mobilenet_ext::cpu::check_vectors();
  return mobilenet_ext::cpu::failures != 0;
}
