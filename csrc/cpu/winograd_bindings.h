// Adds the maps of isa/winograd.h to the module.

#pragma once

#include <pybind11/pybind11.h>

namespace lpn {

void define_winograd(pybind11::module_& module);

}  // namespace lpn
