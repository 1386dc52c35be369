// What is asked of a model's modules on every forward: which objects it consists of, whether one
// has hooks or trains. Objects are told apart by their addresses, so whoever keeps a stamp keeps
// the objects alive too.
#pragma once

#include <cstdint>

#include "bindings/python.h"

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

// Calls visit(key, value) for the items of all dicts, until one returns false.
template <typename Dicts, typename Visit>
bool for_each_item(const Dicts& dicts, Visit visit) {
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
template <typename Dicts>
uint64_t stamp_objects(const Dicts& dicts) {
  Stamp stamp;
  for_each_item(dicts, [&](PyObject*, PyObject* value) {
    stamp.add_object(value);
    return true;
  });
  return stamp.value();
}

// Whether one of the dicts holds something.
template <typename Dicts>
bool any_items(const Dicts& dicts) {
  for (const pybind11::handle dict : dicts) {
    if (PyDict_GET_SIZE(dict.ptr())) return true;
  }
  return false;
}

// Whether one of the modules, of which these are the dicts, is in training mode.
template <typename Dicts>
bool any_training(const Dicts& modules) {
  static PyObject* const name = PyUnicode_InternFromString("training");
  for (const pybind11::handle module : modules) {
    PyObject* const flag = PyDict_GetItemWithError(module.ptr(), name);
    const int is_true = flag ? PyObject_IsTrue(flag) : 1;
    if (PyErr_Occurred()) throw pybind11::error_already_set();
    if (is_true) return true;
  }
  return false;
}

}  // namespace mobilenet_ext
