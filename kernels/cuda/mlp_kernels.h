// The __global__ functions of one precision and their launches; included by mlp_<precision>.cu.

#pragma once

#include <cuda_runtime_api.h>

#include "mlp_hvp.h"
#include "mlp_launch.h"
#include "mlp_solve.h"
#include "mlp_vjp.h"

namespace lpn {
namespace {

template <class Number>
__global__ void __launch_bounds__(pack_threads) pack_kernel(const __grid_constant__ PackCall call) {
  __shared__ float scratch[pack_threads];
  pack<Number>(call, scratch);
}

template <class K, Operation operation>
__global__ void __launch_bounds__(most_warps(operation, K::row_tiles) * simt::lanes, 1)
    mlp_kernel(const __grid_constant__ MlpCall call) {
  extern __shared__ __align__(128) unsigned char shared[];
  if constexpr (operation == Operation::prox) prox<K>(call, shared);
  if constexpr (operation == Operation::hvp) hvp<K>(call, shared);
  if constexpr (operation == Operation::vjp) vjp<K>(call, shared);
}

template <class K>
__global__ void __launch_bounds__(most_warps(Operation::solve, K::row_tiles) * simt::lanes, 1)
    solve_kernel(const __grid_constant__ SolveCall call) {
  extern __shared__ __align__(128) unsigned char shared[];
  solve<K>(call, shared);
}

using Kernel = void (*)(MlpCall);

template <class Number, Operation operation>
Kernel kernel_of(const Plan& plan) {
  if constexpr (has_wide(operation))
    if (plan.row_tiles == wide[0]) return mlp_kernel<Config<Number, wide[0], wide[1], true>, operation>;
  if (plan.resident) return mlp_kernel<Config<Number, narrow[0], narrow[1], true>, operation>;
  return mlp_kernel<Config<Number, narrow[0], narrow[1], false>, operation>;
}

template <class Number>
Kernel kernel_for(Operation operation, const Plan& plan) {
  switch (operation) {
    case Operation::prox:
      return kernel_of<Number, Operation::prox>(plan);
    case Operation::hvp:
      return kernel_of<Number, Operation::hvp>(plan);
    case Operation::vjp:
      return kernel_of<Number, Operation::vjp>(plan);
    default:
      return nullptr;
  }
}

template <class Number>
struct Launcher {
  static int prepare(int shared_per_block, const char** kernel) {
    static const char* const names[] = {"prox", "hvp", "vjp"};
    const Plan plans[] = {{wide[0], wide[1], true, 0, 0, 0, 0, 0},
                          {narrow[0], narrow[1], true, 0, 0, 0, 0, 0},
                          {narrow[0], narrow[1], false, 0, 0, 0, 0, 0}};
    for (int operation = 0; operation < 3; ++operation)
      for (const Plan& plan : plans) {
        *kernel = names[operation];
        const auto function =
            reinterpret_cast<const void*>(kernel_for<Number>(static_cast<Operation>(operation), plan));
        const cudaError_t status =
            cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_per_block);
        if (status != cudaSuccess) return status;
      }
    return cudaSuccess;
  }

  static int pack(const PackCall& call, void* stream) {
    pack_kernel<Number>
        <<<call.problem.stage_count, pack_threads, 0, static_cast<cudaStream_t>(stream)>>>(call);
    return cudaGetLastError();
  }

  static int run(const MlpCall& call, Operation operation, const Plan& plan, void* stream) {
    kernel_for<Number>(operation, plan)<<<plan.blocks, plan.warps * simt::lanes, plan.shared_bytes,
                                          static_cast<cudaStream_t>(stream)>>>(call);
    return cudaGetLastError();
  }
};

// Only float32 grade is compiled, in one unit: a residual is a certificate.
template <class Number>
struct SolveLauncher {
  template <bool resident>
  static auto kernel() {
    return solve_kernel<Config<Number, narrow[0], narrow[1], resident>>;
  }

  static int prepare(int shared_per_block, const char** name) {
    const int status = Launcher<Number>::prepare(shared_per_block, name);
    if (status != cudaSuccess) return status;
    *name = "solve";
    for (const auto function : {kernel<true>(), kernel<false>()}) {
      const cudaError_t one =
          cudaFuncSetAttribute(reinterpret_cast<const void*>(function),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, shared_per_block);
      if (one != cudaSuccess) return one;
    }
    return cudaSuccess;
  }

  static int run(const SolveCall& call, const Plan& plan, void* stream) {
    const auto function = plan.resident ? kernel<true>() : kernel<false>();
    function<<<plan.blocks, plan.warps * simt::lanes, plan.shared_bytes, static_cast<cudaStream_t>(stream)>>>(
        call);
    return cudaGetLastError();
  }
};

}  // namespace
}  // namespace lpn
