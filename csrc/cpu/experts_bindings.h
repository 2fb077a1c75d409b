// Adds the networks of isa/experts.h to the module.

#pragma once

#include <pybind11/pybind11.h>

namespace lpn {

void define_experts(pybind11::module_& module);

}  // namespace lpn
