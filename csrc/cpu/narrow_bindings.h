// Adds the maps of isa/narrow.h to the module.

#pragma once

#include <pybind11/pybind11.h>

namespace lpn {

void define_narrow(pybind11::module_& module);

}  // namespace lpn
