// What the CUDA runtime sees: versions, devices, or the reason why there is none to use.

#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace lpn {

struct DeviceReport {
  struct Device {
    std::string name;
    int capability_major;
    int capability_minor;
    std::size_t memory_bytes;
  };
  int driver_version;   // newest CUDA the driver serves, 1000 major + 10 minor; 0 without a driver
  int runtime_version;  // CUDA this module was built with, same form
  std::vector<Device> devices;
  std::string reason;  // why no device can be used; empty if one can
};

// Never throws where there is no GPU and creates no context.
DeviceReport device_report();

}  // namespace lpn
