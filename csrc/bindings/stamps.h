// Hashes that tell a model's copy whether the model has changed, for a check on every forward.
// Objects are told apart by their addresses, so whoever keeps a stamp keeps the objects alive too.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace mobilenet_ext {

class Stamp {
 public:
  void add(uint64_t value) {
    hash_ = (hash_ ^ value) * 0x9E3779B97F4A7C15;
    hash_ ^= hash_ >> 29;
  }
  void add(const void* pointer) { add(reinterpret_cast<uintptr_t>(pointer)); }
  uint64_t value() const { return hash_; }

 private:
  uint64_t hash_ = 0;
};

// Calls visit(value) for the values of all dicts in the list.
template <typename Visit>
void for_each_value(const pybind11::list& dicts, Visit visit) {
  for (const pybind11::handle dict : dicts) {
    PyObject *key = nullptr, *value = nullptr;
    Py_ssize_t position = 0;
    while (PyDict_Next(dict.ptr(), &position, &key, &value)) visit(value);
  }
}

// Which objects the dicts hold, and their types.
inline uint64_t stamp_objects(const pybind11::list& dicts) {
  Stamp stamp;
  for_each_value(dicts, [&](PyObject* value) {
    stamp.add(value);
    stamp.add(Py_TYPE(value));
  });
  return stamp.value();
}

// Which tensors (or None) the dicts hold, how often each was written to, and where its data lies.
inline uint64_t stamp_tensors(const pybind11::list& dicts) {
  static PyObject* const version_name = PyUnicode_InternFromString("_version");
  static PyObject* const address_name = PyUnicode_InternFromString("data_ptr");
  Stamp stamp;
  const auto add_number = [&](PyObject* number) {
    if (!number) throw pybind11::error_already_set();
    stamp.add(PyLong_AsUnsignedLongLongMask(number));
    Py_DECREF(number);
  };
  for_each_value(dicts, [&](PyObject* value) {
    stamp.add(value);
    if (value == Py_None) return;
    add_number(PyObject_GetAttr(value, version_name));
    add_number(PyObject_CallMethodNoArgs(value, address_name));
  });
  return stamp.value();
}

}  // namespace mobilenet_ext
