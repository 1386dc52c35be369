// Shared memory: all __shared__ variables of all kernels are thread-local variables of this
// library, and nothing else is.
#pragma once

namespace cuda_on_host {

// Fills the shared memory of all kernels with NaN.
void spoil_shared_memory();

}  // namespace cuda_on_host
