#include <cuda_runtime_api.h>

#include "device_report.h"

namespace lpn {

DeviceReport device_report() {
  DeviceReport report{};
  cudaRuntimeGetVersion(&report.runtime_version);
  cudaDriverGetVersion(&report.driver_version);
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    report.reason = cudaGetErrorString(status);
    cudaGetLastError();  // the failure is reported here; the next call must not trip over it
    return report;
  }
  for (int index = 0; index < count; ++index) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) continue;
    report.devices.push_back(
        {properties.name, properties.major, properties.minor, properties.totalGlobalMem});
  }
  if (report.devices.empty()) report.reason = "the CUDA runtime lists no device";
  return report;
}

}  // namespace lpn
