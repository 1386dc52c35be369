// pybind11. The copy in torch 2.10 and 2.11 refuses to be compiled for a target version of torch,
// though it knows nothing of torch: here it is not told.
#pragma once

#pragma push_macro("TORCH_TARGET_VERSION")
#undef TORCH_TARGET_VERSION
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#pragma pop_macro("TORCH_TARGET_VERSION")
