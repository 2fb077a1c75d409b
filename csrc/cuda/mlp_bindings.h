// Dense networks on CUDA devices, for Python: addresses, sizes and a stream; defined in mlp_bindings.cpp.

#pragma once

#include <pybind11/pybind11.h>

namespace lpn {

void bind_mlp(pybind11::module_& module);

}  // namespace lpn
