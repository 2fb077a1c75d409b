// How a call is laid over a device: pure arithmetic, no CUDA, so that it is tested where there is no GPU.

#pragma once

#include <stdint.h>

#include "mlp.h"

namespace lpn {

struct DeviceLimits {
  int processors;
  int shared_per_block;      // bytes that one block may have, opted in
  int shared_per_processor;  // bytes
};

struct Plan {
  int row_tiles, column_tiles;
  bool resident;  // whether the weights lie in shared memory
  int warps;      // per block
  int blocks;
  int64_t shared_bytes;
  int64_t packed_bytes;
  int64_t partial_bytes;  // vjp's workspace
};

// Configurations that are compiled, per precision and operation: {row_tiles, column_tiles}.
constexpr int wide[2] = {2, 8};    // widths that are multiples of 64, batches that fill the device
constexpr int narrow[2] = {1, 4};  // everything else

// Wide tiles hold so much per warp that the operations with more slots would keep too few warps.
constexpr bool has_wide(Operation operation) { return operation == Operation::prox; }

// Warps a block may have, so that 65536 registers suffice: 128 per thread for narrow, 255 for the others.
constexpr int most_warps(Operation operation, int row_tiles) {
  return operation == Operation::solve || row_tiles == wide[0] ? 8 : 16;
}

// Network from P's layout: 6 numbers per stage (width, offsets of core, skip, bias, head, head_sq; -1 =
// absent), then the offsets of c and c0. Throws std::invalid_argument for what no kernel can run.
MlpProblem make_problem(const int64_t* table,  // [6 stages + 2]
                        int64_t dim,
                        int64_t stage_count,
                        int64_t parameter_count,
                        double beta,
                        double alpha);

// Throws std::invalid_argument if not even one warp fits the device.
Plan make_plan(const MlpProblem& problem,
               Precision precision,
               Operation operation,
               int64_t rows,
               const DeviceLimits& limits);

}  // namespace lpn
