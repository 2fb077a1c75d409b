// The __global__ functions of one precision and their launches; included by mlp_<precision>.cu.

#pragma once

#include <cuda_runtime_api.h>

#include <vector>

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

template <class Number, int index>
using KnownWidth = Config<Number,
                          widths[index].shape.row_tiles,
                          widths[index].shape.column_tiles,
                          true,
                          widths[index].shape.team,
                          widths[index].tiles>;

// The kernel with as many row tiles as the plan has, of those whose weights come through the caches.
template <class Number, Operation operation, int index = 0>
Kernel broad_kernel_of(const Plan& plan) {
  constexpr int row_tiles = broad_shapes[index].row_tiles;
  if constexpr (has_broad(operation, row_tiles, sizeof(typename Number::Element)))
    if (plan.row_tiles == row_tiles)
      return mlp_kernel<
          Config<Number, row_tiles, broad_shapes[index].column_tiles, false, broad_shapes[index].team>,
          operation>;
  if constexpr (index + 1 < broad_count) return broad_kernel_of<Number, operation, index + 1>(plan);
  return nullptr;
}

// The kernel of a plan: of the known width that it names, or any width through the caches.
template <class Number, Operation operation, int index = 0>
Kernel kernel_of(const Plan& plan) {
  if constexpr (index == width_count) {
    if (plan.team == broad_team) return broad_kernel_of<Number, operation>(plan);
    return mlp_kernel<
        Config<Number, streamed_shape.row_tiles, streamed_shape.column_tiles, false, streamed_shape.team>,
        operation>;
  } else {
    if constexpr (index == 0 && has_wide(operation))
      if (plan.resident && plan.row_tiles == wide.shape.row_tiles)
        return mlp_kernel<
            Config<Number, wide.shape.row_tiles, wide.shape.column_tiles, true, wide.shape.team, wide.tiles>,
            operation>;
    if (plan.resident && plan.tiles == widths[index].tiles)
      return mlp_kernel<KnownWidth<Number, index>, operation>;
    return kernel_of<Number, operation, index + 1>(plan);
  }
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

// Loads a kernel, so that its first launch may be captured, and lets it have the device's shared memory.
template <class Function>
cudaError_t prepare_kernel(Function function, int shared_per_block) {
  const auto address = reinterpret_cast<const void*>(function);
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, address);
  if (status != cudaSuccess || shared_per_block == 0) return status;
  return cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_per_block);
}

template <class Number>
struct Launcher {
  // A plan for every kernel of an operation, as far as kernel_of reads it.
  static std::vector<Plan> plans(Operation operation) {
    std::vector<Plan> found(1);  // any width
    if (has_wide(operation)) {
      found.emplace_back();
      found.back().resident = true, found.back().row_tiles = wide.shape.row_tiles;
    }
    for (const Width& width : widths) {
      found.emplace_back();
      found.back().resident = true, found.back().tiles = width.tiles;
    }
    for (const Shape& shape : broad_shapes)
      if (has_broad(operation, shape.row_tiles, sizeof(typename Number::Element))) {
        found.emplace_back();
        found.back().team = shape.team, found.back().row_tiles = shape.row_tiles;
      }
    return found;
  }

  static int prepare(int shared_per_block, const char** kernel) {
    static const char* const names[] = {"prox", "hvp", "vjp"};
    *kernel = "pack";
    if (const cudaError_t status = prepare_kernel(pack_kernel<Number>, 0); status != cudaSuccess)
      return status;
    for (int operation = 0; operation < 3; ++operation) {
      *kernel = names[operation];
      for (const Plan& plan : plans(static_cast<Operation>(operation))) {
        const cudaError_t status =
            prepare_kernel(kernel_for<Number>(static_cast<Operation>(operation), plan), shared_per_block);
        if (status != cudaSuccess) return status;
      }
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
    return solve_kernel<
        Config<Number, solver_shape.row_tiles, solver_shape.column_tiles, resident, solver_shape.team>>;
  }

  static int prepare(int shared_per_block, const char** name) {
    const int status = Launcher<Number>::prepare(shared_per_block, name);
    if (status != cudaSuccess) return status;
    *name = "solve";
    for (const auto function : {kernel<true>(), kernel<false>()}) {
      const cudaError_t one = prepare_kernel(function, shared_per_block);
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
