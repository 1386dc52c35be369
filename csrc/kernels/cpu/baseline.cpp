// What every CPU of the architecture has: SSE2 on x86-64, NEON on aarch64.
#define MOBILENET_EXT_VECTOR_BYTES 16
#include "kernels/cpu/table.inl.h"

namespace mobilenet_ext::cpu {
extern const KernelTable kBaseline;
const KernelTable kBaseline = make_table("baseline");
}  // namespace mobilenet_ext::cpu
