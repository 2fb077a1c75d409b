#include "mlp_launch.h"

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "mlp_pack.h"
#include "mlp_vjp.h"

namespace lpn {
namespace {

constexpr int most_devices = 64;
constexpr int sum_threads = 256;

struct Prepared {
  bool known;  // limits
  bool precisions[4];
  DeviceLimits limits;
};
Prepared prepared[most_devices];  // written under Python's global lock

const char* name_of(Precision precision) {
  static const char* const names[] = {"fp32", "tf32", "fp16", "bf16"};
  return names[static_cast<int>(precision)];
}

const char* name_of(Operation operation) {
  static const char* const names[] = {"prox", "hvp", "vjp", "solve"};
  return names[static_cast<int>(operation)];
}

const MlpKernels& kernels_of(Precision precision) {
  static const MlpKernels* const tables[] = {&mlp_fp32, &mlp_tf32, &mlp_fp16, &mlp_bf16};
  return *tables[static_cast<int>(precision)];
}

void require(int status, const std::string& what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // reported here; the next call must not trip over it
  throw std::runtime_error("CUDA kernel '" + what +
                           "': " + cudaGetErrorString(static_cast<cudaError_t>(status)));
}

// The device of the tensors while this lives, then the one that was current before.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    require(cudaGetDevice(&before_), "device guard");
    if (before_ != device) require(cudaSetDevice(device), "device guard");
    changed_ = before_ != device;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Loading kernels is not stream work, but a capture that this or another thread has begun would refuse it.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

__global__ void __launch_bounds__(sum_threads) sum_kernel(const __grid_constant__ SumCall call) {
  sum_partials(call);
}

// The problem, padded as planned.
MlpProblem padded(MlpProblem problem, const Plan& plan) {
  problem.tiles = plan.tiles;
  return problem;
}

void pack(const MlpCall& call, Precision precision, const Plan& plan, void* stream) {
  const PackCall pack_call{call.problem, call.parameters, const_cast<unsigned char*>(call.packed),
                           !plan.resident};
  require(kernels_of(precision).pack(pack_call, stream), std::string("mlp pack ") + name_of(precision));
}

}  // namespace

void mlp_prepare(int device, Precision precision) {
  if (device < 0 || device >= most_devices)
    throw std::runtime_error("device index " + std::to_string(device));
  Prepared& found = prepared[device];
  if (found.precisions[static_cast<int>(precision)]) return;
  const DeviceGuard guard(device);
  const RelaxedCapture relaxed;
  if (!found.known) {
    const auto read = [device](int* value, cudaDeviceAttr attribute) {
      require(cudaDeviceGetAttribute(value, attribute, device), "device attributes");
    };
    read(&found.limits.processors, cudaDevAttrMultiProcessorCount);
    read(&found.limits.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    read(&found.limits.shared_per_processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    cudaFuncAttributes attributes;
    require(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(sum_kernel)),
            "mlp sum of gradients");
    found.known = true;
  }
  const char* kernel = "";
  const int status = kernels_of(precision).prepare(found.limits.shared_per_block, &kernel);
  require(status, std::string("mlp ") + kernel + " " + name_of(precision));
  found.precisions[static_cast<int>(precision)] = true;
}

const DeviceLimits& mlp_limits(int device) {
  if (device < 0 || device >= most_devices || !prepared[device].known)
    throw std::runtime_error("device " + std::to_string(device) + " was not prepared");
  return prepared[device].limits;
}

void mlp_run(const MlpCall& unpadded,
             Precision precision,
             Operation operation,
             const Plan& plan,
             float* gradient,  // [parameter_count]
             int device,
             void* stream) {
  const DeviceGuard guard(device);
  MlpCall call = unpadded;
  call.problem = padded(call.problem, plan);
  if (call.rows > 0) {
    pack(call, precision, plan, stream);
    require(kernels_of(precision).run(call, operation, plan, stream),
            std::string("mlp ") + name_of(operation) + " " + name_of(precision));
  }
  if (operation != Operation::vjp) return;
  const int count = call.problem.parameter_count;
  const SumCall sum{call.partial, gradient, call.rows > 0 ? plan.blocks : 0, count};
  sum_kernel<<<(count + sum_threads - 1) / sum_threads, sum_threads, 0, static_cast<cudaStream_t>(stream)>>>(
      sum);
  require(cudaGetLastError(), "mlp sum of gradients");
}

void mlp_solve(const SolveCall& unpadded, const Plan& plan, int device, void* stream) {
  if (unpadded.mlp.rows == 0) return;
  const DeviceGuard guard(device);
  SolveCall call = unpadded;
  call.mlp.problem = padded(call.mlp.problem, plan);
  pack(call.mlp, Precision::fp32, plan, stream);
  require(mlp_fp32.solve(call, plan, stream), "mlp solve");
}

}  // namespace lpn
