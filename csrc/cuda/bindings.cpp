// lpn_fast._cuda: what the CUDA part offers to Python. It loads without a driver and then says so.

#include <pybind11/pybind11.h>

#include "device_report.h"
#include "mlp_bindings.h"

namespace py = pybind11;

namespace lpn {
namespace {

py::dict device_report_for_python() {
  const DeviceReport report = [] {
    py::gil_scoped_release unlocked;  // the first CUDA call may take a second
    return device_report();
  }();
  py::list devices;
  for (const DeviceReport::Device& device : report.devices) {
    py::dict entry;
    entry["name"] = device.name;
    entry["compute_capability"] = py::make_tuple(device.capability_major, device.capability_minor);
    entry["memory_bytes"] = device.memory_bytes;
    devices.append(entry);
  }
  py::dict result;
  result["driver_version"] = report.driver_version;
  result["runtime_version"] = report.runtime_version;
  result["devices"] = devices;
  result["reason"] = report.reason.empty() ? py::object(py::none()) : py::object(py::str(report.reason));
  return result;
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "CUDA kernels of lpn_fast.";
  module.def(
      "device_report", &device_report_for_python,
      "driver_version and runtime_version (1000 major + 10 minor; 0 is none), devices, and reason: why no "
      "device can be used, or None.");
  module.attr("code") = LPN_CUDA_CODE;  // as CMake names it: sm_* is machine code, compute_* PTX
  bind_mlp(module);
}

}  // namespace lpn
