// Adds the maps of isa/thin.h to the module.

#pragma once

#include <pybind11/pybind11.h>

namespace lpn {

void define_thin(pybind11::module_& module);

}  // namespace lpn
