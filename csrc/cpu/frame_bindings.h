// Adds the networks of isa/frame.h to the module.

#pragma once

#include <pybind11/pybind11.h>

namespace lpn {

void define_frame(pybind11::module_& module);

}  // namespace lpn
