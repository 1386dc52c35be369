// The one file that is compiled against torch's own classes, which may change from one version to
// the next. The rest of this library keeps to torch's stable interface, and so does what this file
// links to: torch's accessors that report errors by a function of torch are not called.
#undef TORCH_TARGET_VERSION
#include "bindings/tensor_state.h"

#include <c10/core/TensorImpl.h>
#include <torch/headeronly/version.h>

#include <atomic>
#include <cstring>

namespace mobilenet_ext {

namespace {

// What c10::VariableVersion points to; its own accessor checks first.
struct WriteCounter : c10::intrusive_ptr_target {
  std::atomic<uint32_t> count;
};
static_assert(sizeof(c10::VariableVersion) == sizeof(const WriteCounter*));

}  // namespace

// "2.13.0" of "2.13.0+cpu".
bool knows_layout(const char* torch_version) {
  const size_t length = std::strcspn(TORCH_VERSION, "+");
  return std::strcspn(torch_version, "+") == length &&
         std::strncmp(torch_version, TORCH_VERSION, length) == 0;
}

TensorState read_state(const void* tensor_impl) {
  const auto* impl = static_cast<const c10::TensorImpl*>(tensor_impl);
  const WriteCounter* counter = nullptr;
  std::memcpy(&counter, &impl->version_counter(), sizeof(counter));
  c10::StorageImpl* const storage = impl->unsafe_storage().unsafeGetStorageImpl();
  return {counter->count, storage, storage->_mutable_data_ptr_no_checks().get(),
          impl->storage_offset()};
}

}  // namespace mobilenet_ext
