// What torch has been told to do with the calls of a thread, asked without a frame of Python.
#pragma once

#include "bindings/python.h"

namespace mobilenet_ext {

class TorchState {
 public:
  static const TorchState& get() {
    static const TorchState* const state = new TorchState;  // outlives the interpreter
    return *state;
  }

  // Whether results need no gradients, autocast casts nothing and no trace is taken.
  bool is_plain_inference() const {
    return !is_true(records_) && !is_true(casts_) && !is_true(traces_);
  }

 private:
  pybind11::module_ torch_ = pybind11::module_::import("torch._C");
  pybind11::object records_ = torch_.attr("is_grad_enabled");
  pybind11::object casts_ = torch_.attr("_is_any_autocast_enabled");
  pybind11::object traces_ = torch_.attr("_is_tracing");

  static bool is_true(const pybind11::object& function) {
    const auto answer =
        pybind11::reinterpret_steal<pybind11::object>(PyObject_CallNoArgs(function.ptr()));
    if (!answer) throw pybind11::error_already_set();
    return answer.ptr() == Py_True;
  }
};

}  // namespace mobilenet_ext
