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
  int team;       // warps that own the same rows
  int tiles;      // 8 units each, to which the stages are padded
  bool resident;  // whether the weights lie in shared memory
  bool spilled;   // whether what the rows keep of every stage lies in device memory
  int warps;      // per block
  int blocks;
  int64_t shared_bytes;
  int64_t packed_bytes;
  int64_t partial_bytes;  // vjp's workspace
  int64_t spilled_bytes;  // workspace of what is spilled
};

// How a team walks over its rows: 16 row_tiles rows, 8 column_tiles columns at a time and warp.
struct Shape {
  int row_tiles, column_tiles, team;
};

// Shapes that are compiled, per precision and operation. A width that the compiler knows has its own: the
// loops over the depth unroll, and as many warps share the rows as find columns.
struct Width {
  int tiles;  // H / 8
  Shape shape;
};
constexpr Width widths[] = {{4, {1, 2, 2}}, {6, {1, 2, 3}}, {8, {1, 4, 2}}, {12, {1, 4, 3}}, {16, {1, 4, 4}}};
constexpr int width_count = sizeof(widths) / sizeof(widths[0]);
// For batches that fill the device, prox, H = 64: two row tiles share what is read of the weights.
constexpr Width wide{8, {2, 8, 1}};
// Weights through the caches, any width up to the known ones: where 32-bit weights leave no room.
constexpr Shape streamed_shape{1, 4, 4};
// Wider: 0.5 MB in 16 bits at H = 256 and five stages, read in both sweeps. A processor gets some 24 bytes
// per cycle from the second-level cache, and a team multiplies 16 rows by what it reads in half of the time
// that this takes. So rows per team are what counts: all warps of a block (8 times 4 tiles are 256 columns)
// share as many as shared memory holds. Loops over 24 or 32 tiles gain nothing from a known end.
constexpr Shape broad_shapes[] = {{4, 4, 8}, {2, 4, 8}, {1, 4, 8}};
constexpr int broad_count = sizeof(broad_shapes) / sizeof(broad_shapes[0]);
constexpr int broad_team = broad_shapes[0].team;  // no other shape has such a team
// The solver: rows end when they have converged, so every team is on its own.
constexpr Shape solver_shape{1, 4, 2};

constexpr bool has_wide(Operation operation) { return operation == Operation::prox; }
// Those that shared memory can hold at H = 256 with more than two stages.
constexpr bool has_broad(Operation operation, int row_tiles, int element_bytes) {
  return row_tiles * element_bytes <= (operation == Operation::prox ? 8 : 4);
}

// Warps a block may have, so that 65536 registers suffice: 128 per thread, 255 for several row tiles and the
// solver.
constexpr int most_warps(Operation operation, int row_tiles) {
  return operation == Operation::solve || row_tiles > 1 ? 8 : 16;
}
constexpr int most_teams(Operation operation, const Shape& shape) {
  return most_warps(operation, shape.row_tiles) / shape.team;  // 15 named barriers are enough
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
