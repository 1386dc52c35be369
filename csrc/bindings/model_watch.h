// Tells whether a model is still what it was: the same modules, without hooks, none in training
// mode, and the same tensors, not written to, with their data where it was. An inference asks this
// of some 80 modules and 140 tensors, whose memory the weights of the last one have driven out of
// the caches. Asked one after the other, and by way of Python, they would take as long as a small
// network does. So the dicts that hold them are read through only when one has been written to.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "bindings/dict_changes.h"
#include "bindings/python.h"
#include "bindings/stamps.h"
#include "bindings/tensor_state.h"

namespace mobilenet_ext {

// The at::Tensor inside a Python tensor, as torch's C interface takes it; null if it is not found.
// It is one pointer, and Python tells which: so that word is looked for, whatever lies around it.
inline AtenTensorHandle find_handle(PyObject* tensor) {
  try {
    const auto held = pybind11::handle(tensor).attr("_cdata").cast<uintptr_t>();
    auto* const words = reinterpret_cast<uintptr_t*>(tensor);
    auto* const end = words + Py_TYPE(tensor)->tp_basicsize / sizeof(uintptr_t);
    auto* const found = std::find(words + sizeof(PyObject) / sizeof(uintptr_t), end, held);
    return found == end ? nullptr : reinterpret_cast<AtenTensorHandle>(found);
  } catch (const std::exception&) {  // a TorchFunctionMode may answer in torch's place
    return nullptr;
  }
}

// Dicts of tensors (or None). Batches counted by BatchNorm decide nothing and are left out.
class TensorWatch {
 public:
  explicit TensorWatch(Dicts dicts) : dicts_(std::move(dicts)) {
    reliable_ = for_each_item(dicts_, [&](PyObject* key, PyObject* value) {
      if (key == batches()) return true;
      seen_.push_back(Seen(value));
      return seen_.back().reliable;
    });
  }

  // Whether a change of them all can be told. Not of inference tensors, which count no writes, and
  // of subclasses, which may make up what they tell.
  bool is_reliable() const { return reliable_; }

  // Whether the dicts hold what they held.
  bool holds_the_same() const {
    size_t index = 0;
    const bool same = for_each_item(dicts_, [&](PyObject* key, PyObject* value) {
      return key == batches() || (index < seen_.size() && seen_[index++].object == value);
    });
    return same && index == seen_.size();
  }

  // Whether that is as it was.
  bool is_untouched() const {
    for (size_t i = 0; i < seen_.size(); ++i) {
      if (i + 2 * kAhead < seen_.size()) seen_[i + 2 * kAhead].prefetch_object();
      if (i + kAhead < seen_.size()) seen_[i + kAhead].prefetch_content();
      if (!seen_[i].is_untouched()) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kAhead = 8;  // tensors whose memory is on its way

  static PyObject* batches() {
    static PyObject* const name = PyUnicode_InternFromString("num_batches_tracked");
    return name;
  }

  // What is looked up once.
  struct Torch {
    pybind11::object tensor = pybind11::module_::import("torch").attr("Tensor");
    pybind11::object parameter = pybind11::module_::import("torch.nn").attr("Parameter");
    pybind11::object version = tensor.attr("_version");  // how Python tells a count of writes
    bool is_known = knows_layout(
        pybind11::module_::import("torch").attr("__version__").cast<std::string>().c_str());

    static const Torch& get() {
      static const Torch* const torch = new Torch;  // outlives the interpreter
      return *torch;
    }
    bool is_plain(PyTypeObject* type) const {
      const auto* object = reinterpret_cast<PyObject*>(type);
      return object == tensor.ptr() || object == parameter.ptr();
    }
  };

  struct Seen {
    PyObject* object;
    PyTypeObject* type;
    AtenTensorHandle handle = nullptr;  // null: None
    const void* held = nullptr;         // by the handle; torch.utils.swap_tensors changes it
    TensorState state = {};
    void* data = nullptr;  // this and the next only where the state cannot be read
    uint64_t version = 0;
    bool reliable = true;

    explicit Seen(PyObject* value) : object(value), type(Py_TYPE(value)) {
      if (value == Py_None) return;
      if (Torch::get().is_plain(type)) handle = find_handle(value);
      reliable = handle && read(&version, &data);
      if (!reliable) return;
      held = content();
      if (!Torch::get().is_known) return;
      state = read_state(held);
      if (state.writes != version) state = {};  // Python knows better
    }

    bool is_untouched() const {
      if (Py_TYPE(object) != type) return false;
      if (!handle) return true;
      if (content() != held) return false;
      if (state.storage) return read_state(held) == state;
      uint64_t version_now = 0;
      void* data_now = nullptr;
      return read(&version_now, &data_now) && version_now == version && data_now == data;
    }

    void prefetch_object() const { __builtin_prefetch(object); }

    // torch's own object, and where its first words point: storage and count of writes among them.
    void prefetch_content() const {
      if (!handle || content() != held) return;
      const auto* lines = static_cast<const char*>(held);
      for (int i = 0; i < 3; ++i) __builtin_prefetch(lines + i * 64);
      const auto* words = static_cast<const void* const*>(held);
      for (int i = 2; i < 6; ++i) __builtin_prefetch(words[i]);
    }

    const void* content() const { return *reinterpret_cast<const void* const*>(handle); }

    bool read(uint64_t* version_to, void** data_to) const {
      PyObject* const descriptor = Torch::get().version.ptr();
      PyObject* const number =
          Py_TYPE(descriptor)->tp_descr_get(descriptor, object, reinterpret_cast<PyObject*>(type));
      if (number) {
        *version_to = PyLong_AsUnsignedLongLongMask(number);
        Py_DECREF(number);
      }
      if (PyErr_Occurred()) {
        PyErr_Clear();
        return false;
      }
      return aoti_torch_get_data_ptr(handle, data_to) == AOTI_TORCH_SUCCESS;
    }
  };

  Dicts dicts_;
  std::vector<Seen> seen_;
  bool reliable_;
};

// Refers to what it watches without keeping it alive, as Python's collector would not see that. It
// tells modules, tensors and data apart by their addresses: whoever keeps a watch keeps them too.
class ModelWatch {
 public:
  ModelWatch(const pybind11::list& modules, const pybind11::list& hooks,
             const pybind11::list& modes, const pybind11::list& tensors)
      : modules_(borrowed(modules)),
        hooks_(borrowed(hooks)),
        modes_(borrowed(modes)),
        changes_(all_of({modules_, hooks_, modes_, borrowed(tensors)})),
        members_(modules_),
        tensors_(borrowed(tensors)) {}

  bool is_reliable() const { return tensors_.is_reliable(); }

  bool is_current() {
    if (!is_reliable()) return false;
    if (changes_.any()) {
      if (!holds_the_same()) return false;
      changes_.forget();
    }
    return members_.have_same_types() && tensors_.is_untouched();
  }

 private:
  // The modules that dicts hold. A module may become one of another type without a word to them.
  class Members {
   public:
    explicit Members(const Dicts& dicts) {
      for_each_item(dicts, [&](PyObject*, PyObject* value) {
        seen_.emplace_back(value, Py_TYPE(value));
        return true;
      });
    }
    bool are_held_by(const Dicts& dicts) const {
      size_t index = 0;
      const bool same = for_each_item(dicts, [&](PyObject*, PyObject* value) {
        return index < seen_.size() && seen_[index++].first == value;
      });
      return same && index == seen_.size();
    }
    bool have_same_types() const {
      return std::all_of(seen_.begin(), seen_.end(),
                         [](const auto& seen) { return Py_TYPE(seen.first) == seen.second; });
    }

   private:
    std::vector<std::pair<PyObject*, PyTypeObject*>> seen_;
  };

  Dicts modules_, hooks_, modes_;
  DictChanges changes_;
  Members members_;
  TensorWatch tensors_;

  bool holds_the_same() const {
    return members_.are_held_by(modules_) && !any_items(hooks_) && !any_training(modes_) &&
           tensors_.holds_the_same();
  }

  static Dicts all_of(std::initializer_list<Dicts> parts) {
    Dicts dicts;
    for (const Dicts& part : parts) dicts.insert(dicts.end(), part.begin(), part.end());
    return dicts;
  }

  static Dicts borrowed(const pybind11::list& dicts) {
    Dicts pointers;
    for (const pybind11::handle dict : dicts) pointers.push_back(dict.ptr());
    return pointers;
  }
};

}  // namespace mobilenet_ext
