// What a model's copy is compared with on every forward: which objects the model consists of, and
// whether a tensor of it has changed. Objects are told apart by their addresses, so whoever keeps a
// stamp keeps the objects alive too.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace mobilenet_ext {

class Stamp {
 public:
  void add(uint64_t value) {
    hash_ = (hash_ ^ value) * 0x9E3779B97F4A7C15;
    hash_ ^= hash_ >> 29;
  }
  void add(const void* pointer) { add(reinterpret_cast<uintptr_t>(pointer)); }
  void add_object(PyObject* object) {
    add(object);
    add(Py_TYPE(object));
  }
  uint64_t value() const { return hash_; }

 private:
  uint64_t hash_ = 0;
};

// Calls visit(key, value) for the items of all dicts in the list, until one returns false.
template <typename Visit>
bool for_each_item(const pybind11::list& dicts, Visit visit) {
  for (const pybind11::handle dict : dicts) {
    PyObject *key = nullptr, *value = nullptr;
    Py_ssize_t position = 0;
    while (PyDict_Next(dict.ptr(), &position, &key, &value)) {
      if (!visit(key, value)) return false;
    }
  }
  return true;
}

// Which objects the dicts hold, and their types.
inline uint64_t stamp_objects(const pybind11::list& dicts) {
  Stamp stamp;
  for_each_item(dicts, [&](PyObject*, PyObject* value) {
    stamp.add_object(value);
    return true;
  });
  return stamp.value();
}

// How torch tells a tensor's version and address, looked up once.
class TensorAccess {
 public:
  static const TensorAccess& get() {
    static const TensorAccess* const access = new TensorAccess;  // outlives the interpreter
    return *access;
  }

  // Whether it is a plain tensor, whose version and address no subclass makes up.
  bool is_plain(PyObject* object) const {
    const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    return type == tensor_.ptr() || type == parameter_.ptr();
  }
  // New references to numbers, or null with a Python error.
  PyObject* version(PyObject* tensor) const {
    return Py_TYPE(version_.ptr())
        ->tp_descr_get(version_.ptr(), tensor, reinterpret_cast<PyObject*>(Py_TYPE(tensor)));
  }
  PyObject* address(PyObject* tensor) const { return PyObject_CallOneArg(data_ptr_.ptr(), tensor); }

 private:
  const pybind11::object tensor_ = pybind11::module_::import("torch").attr("Tensor");
  const pybind11::object parameter_ = pybind11::module_::import("torch.nn").attr("Parameter");
  const pybind11::object version_ = tensor_.attr("_version"), data_ptr_ = tensor_.attr("data_ptr");
};

// Which tensors (or None) the dicts hold, how often each was written to, and where its data lies.
// Batches counted by BatchNorm decide nothing and are left out. None where a change cannot be told:
// subclasses, and inference tensors, which count no writes.
inline std::optional<uint64_t> stamp_tensors(const pybind11::list& dicts) {
  static PyObject* const batches = PyUnicode_InternFromString("num_batches_tracked");
  const TensorAccess& access = TensorAccess::get();
  Stamp stamp;
  std::vector<PyObject*> tensors;
  tensors.reserve(256);
  // A loop of its own, and short: here the processor waits for many tensors at a time, when what
  // ran before has driven them out of the caches.
  const bool plain = for_each_item(dicts, [&](PyObject* key, PyObject* value) {
    if (key == batches) return true;
    stamp.add_object(value);
    if (value == Py_None) return true;
    tensors.push_back(value);
    return access.is_plain(value);
  });
  if (!plain) return std::nullopt;
  const auto add_number = [&](PyObject* number) {
    if (!number) {
      PyErr_Clear();
      return false;
    }
    stamp.add(PyLong_AsUnsignedLongLongMask(number));
    Py_DECREF(number);
    return true;
  };
  for (PyObject* tensor : tensors) {
    if (!add_number(access.version(tensor)) || !add_number(access.address(tensor))) {
      return std::nullopt;
    }
  }
  return stamp.value();
}

// Whether one of the dicts holds something.
inline bool any_items(const pybind11::list& dicts) {
  for (const pybind11::handle dict : dicts) {
    if (PyDict_GET_SIZE(dict.ptr())) return true;
  }
  return false;
}

// Whether one of the modules is in training mode.
inline bool any_training(const pybind11::list& modules) {
  static PyObject* const name = PyUnicode_InternFromString("training");
  for (const pybind11::handle module : modules) {
    const auto flag =
        pybind11::reinterpret_steal<pybind11::object>(PyObject_GetAttr(module.ptr(), name));
    if (!flag) throw pybind11::error_already_set();
    if (PyObject_IsTrue(flag.ptr())) return true;
  }
  return false;
}

}  // namespace mobilenet_ext
