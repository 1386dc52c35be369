// How often a tensor was written to and where its data lies, read from torch's own object. Python's
// Tensor._version says the first too, but takes longer to ask for all weights of a small network
// than the network takes to run.
#pragma once

#include <cstdint>

namespace mobilenet_ext {

struct TensorState {
  uint32_t writes;
  const void* storage;
  const void* memory;  // of the storage
  int64_t offset;      // in elements

  bool operator==(const TensorState& other) const {
    return writes == other.writes && storage == other.storage && memory == other.memory &&
           offset == other.offset;
  }
};

// Whether the torch that runs is the one whose headers this was compiled with. Its objects may look
// different otherwise, and read_state() must not be called.
bool knows_layout(const char* torch_version);

// Of a c10::TensorImpl with storage that counts writes, as inference tensors do not.
TensorState read_state(const void* tensor_impl);

}  // namespace mobilenet_ext
