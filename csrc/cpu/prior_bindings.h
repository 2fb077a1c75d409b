// Explicit priors for Python.

#pragma once

#include <pybind11/pybind11.h>

namespace lpn {

void define_prior(pybind11::module_& module);

}  // namespace lpn
