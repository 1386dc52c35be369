// The Python module `_C`: importing it registers the ops; it tells how it was built and which
// instruction set is in use.
#include <torch/headeronly/version.h>

#include <map>
#include <string>
#include <vector>

#include "bindings/model_watch.h"
#include "bindings/page_faults.h"
#include "bindings/python.h"
#include "bindings/stamps.h"
#include "bindings/torch_state.h"
#include "kernels/cpu/kernels.h"

namespace {

std::map<std::string, std::string> build_info() {
  return {
      {"torch", TORCH_VERSION},
#if defined(__clang__)
      {"compiler", "clang " __clang_version__},
#else
      {"compiler", "gcc " __VERSION__},
#endif
#if defined(__x86_64__)
      {"architecture", "x86_64"},
#elif defined(__aarch64__)
      {"architecture", "aarch64"},
#else
      {"architecture", "other"},
#endif
  };
}

std::vector<std::string> available_isas() {
  int count = 0;
  const auto* tables = mobilenet_ext::cpu::available_kernels(&count);
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) names.emplace_back(tables[i]->name);
  return names;
}

void set_isa(const std::string& name) {
  if (mobilenet_ext::cpu::select_kernels(name.c_str())) return;
  std::string message = "set_isa: name must be one of";
  for (const std::string& isa : available_isas()) message += " " + isa;
  throw pybind11::value_error(message + ", got " + name);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  mobilenet_ext::keep_freed_memory();
  m.doc() = "Compiled kernels of mobilenet_ext; importing this module registers its ops.";
  m.def("build_info", &build_info, "How this library was built.");
  m.def("available_isas", &available_isas, "Instruction sets this CPU can run, best last.");
  m.def(
      "isa", [] { return std::string(mobilenet_ext::cpu::kernels().name); },
      "The instruction set in use.");
  m.def("stamp_objects", &mobilenet_ext::stamp_objects<pybind11::list>, pybind11::arg("dicts"),
        "Hash of the objects that dicts hold, and of their types.");
  m.def("any_items", &mobilenet_ext::any_items<pybind11::list>, pybind11::arg("dicts"),
        "Whether one of the dicts holds something.");
  m.def("any_training", &mobilenet_ext::any_training<pybind11::list>, pybind11::arg("modules"),
        "Whether one of the modules, of which these are the dicts, is in training mode.");
  using mobilenet_ext::ModelWatch;
  pybind11::class_<ModelWatch>(m, "ModelWatch", "Tells whether a model has changed.")
      .def(pybind11::init<const pybind11::list&, const pybind11::list&, const pybind11::list&,
                          const pybind11::list&>(),
           pybind11::arg("modules"), pybind11::arg("hooks"), pybind11::arg("modes"),
           pybind11::arg("tensors"))
      .def("is_reliable", &ModelWatch::is_reliable,
           "Whether a change can be told: not of inference tensors or of subclasses.")
      .def("is_current", &ModelWatch::is_current,
           "Whether it is what it was, without hooks and in eval mode.");
  m.def(
      "is_plain_inference", [] { return mobilenet_ext::TorchState::get().is_plain_inference(); },
      "Whether results need no gradients, autocast casts nothing and no trace is taken.");
  m.def("set_isa", &set_isa, pybind11::arg("name"),
        "Makes another instruction set the one in use.");
}
