// The dense network's kernels from the host's side. No CUDA header needed; errors are std::runtime_error with
// the kernel's name. Everything is queued on the caller's stream; nothing allocates or waits, so calls can be
// captured into a graph once the device was prepared for the precision.

#pragma once

#include "mlp_plan.h"

namespace lpn {

// Reads the device's limits and lets the kernels of a precision have its shared memory, those of no other: a
// device that is newer than the machine code compiles them from PTX, which takes its time. Outside a capture.
void mlp_prepare(int device, Precision precision);

// Limits of a device that was prepared.
const DeviceLimits& mlp_limits(int device);

// Packs P into call.packed and runs the operation; for vjp the gradient of P ends in `gradient`.
void mlp_run(const MlpCall& call,
             Precision precision,
             Operation operation,
             const Plan& plan,
             float* gradient,  // [parameter_count], vjp only
             int device,
             void* stream);  // cudaStream_t

// The solver, in float32 grade; call.mlp.packed is workspace as above.
void mlp_solve(const SolveCall& call, const Plan& plan, int device, void* stream);

// ---- for the units that compile the kernels
// ----------------------------------------------------------------

struct PackCall;

// Functions of one precision; compiled in mlp_<precision>.cu.
struct MlpKernels {
  // cudaError_t, and in *kernel the name of what failed
  int (*prepare)(int shared_per_block, const char** kernel);
  int (*pack)(const PackCall& call, void* stream);
  int (*run)(const MlpCall& call, Operation operation, const Plan& plan, void* stream);
  int (*solve)(const SolveCall& call, const Plan& plan, void* stream);  // fp32 only, else nullptr
};

extern const MlpKernels mlp_fp32, mlp_tf32, mlp_fp16, mlp_bf16;

}  // namespace lpn
