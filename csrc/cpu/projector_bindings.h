// Adds the projector's functions to the module.

#pragma once

#include <pybind11/pybind11.h>

namespace lpn {

void define_projector(pybind11::module_& module);

}  // namespace lpn
