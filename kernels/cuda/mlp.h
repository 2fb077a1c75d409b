// What a launch of a dense network consists of: plain structs and sizes, for kernels and host code alike.
//
//   u_l = W_l z_{l-1} + A_l x + b_l;   z_l = softplus_beta(u_l);   psi = sum_l (w_l . z_l + g_l . z_l^2)
//                                                                       + c . x + c0 + alpha/2 |x|^2
// Widths are padded to H = 8 `tiles`, as the plan says, and dim to 8 `dim_tiles` by zero weights, into and
// out of the padded units: they contribute exactly nothing.

#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define LPN_BOTH __host__ __device__
#else
#define LPN_BOTH
#endif

namespace lpn {

constexpr int max_stages = 32;
constexpr int max_width = 256;
constexpr int max_dim = 64;

enum class Precision : int32_t { fp32, tf32, fp16, bf16 };
enum class Operation : int32_t { prox, hvp, vjp, solve };

struct MlpStage {
  int32_t width;    // H_l
  int32_t core;     // offset in P of W_l [H_l, H_{l-1}], -1 = absent, and so on
  int32_t skip;     // A_l [H_l, d]
  int32_t bias;     // b_l [H_l]
  int32_t head;     // w_l [H_l]
  int32_t head_sq;  // g_l [H_l]
};

struct MlpProblem {
  MlpStage stages[max_stages];
  int32_t stage_count;
  int32_t dim;
  int32_t linear;    // offset of c [d], -1 = absent
  int32_t constant;  // offset of c0
  int32_t parameter_count;
  int32_t widest;     // largest H_l
  int32_t tiles;      // 8 units each, all stages padded to the same width; Plan::tiles for a launch
  int32_t dim_tiles;  // 8 entries of x each
  float beta;
  float alpha;
};

// Powers of two that keep 16-bit numbers in range, all exact:
//   W_l is stored as 2^-a W_l, its largest entry near one; e_l and delta_l as their values over E_l.
struct StageScale {
  float forward;   // 2^a:               y_l = forward (stored W_l z') + ...
  float backward;  // 2^a E_l / E_{l-1}:  e_{l-1} = s (backward (stored W_l^T e_l) + ...)
  float ratio;     // E_{l+1} / E_l:      for the running sum  A^T e
  float size;      // E_l
};

// What packing leaves behind for the scales, per stage.
struct StageRange {
  float forward;     // 2^a
  float column_sum;  // the largest of W_l: |W_l^T e| <= column_sum |e|, entry by entry
  float head;        // the largest of w_l and 2 g_l / kappa
  float unused;
};

// Where everything lies in the packed weights, in bytes. Elements first: skips of all stages, cores of stages
// 1.., each block by block, row block outermost; the same once more transposed, if needed; then float vectors
// bias, head, head_sq [tiles * 8] of each stage; then the ranges.
struct PackedLayout {
  int32_t tiles, dim_tiles, stages, element_bytes;

  LPN_BOTH int skip_blocks() const { return tiles * dim_tiles; }
  LPN_BOTH int core_blocks() const { return tiles * tiles; }
  LPN_BOTH int skip_at(int l) const { return l * skip_blocks(); }                                 // in blocks
  LPN_BOTH int core_at(int l) const { return stages * skip_blocks() + (l - 1) * core_blocks(); }  // in blocks
  LPN_BOTH int64_t weight_bytes() const { return int64_t{core_at(stages)} * 64 * element_bytes; }
  LPN_BOTH int64_t vectors_at(bool both) const { return weight_bytes() * (both ? 2 : 1); }
  LPN_BOTH int64_t vector_bytes() const { return int64_t{stages} * 3 * tiles * 8 * 4; }
  LPN_BOTH int64_t ranges_at(bool both) const { return vectors_at(both) + vector_bytes(); }
  LPN_BOTH int64_t bytes(bool both) const {
    return ranges_at(both) + stages * static_cast<int64_t>(sizeof(StageRange));
  }
};

// Shared memory of one team, the warps that own the same rows, in bytes; a slot holds one quantity of one
// stage for those rows.
struct TeamLayout {
  int32_t slot_bytes, slots, input_bytes, inputs, sum_bytes, part_bytes;
  bool spilled;  // the slots lie in device memory instead

  LPN_BOTH int64_t all_slots() const { return int64_t{slot_bytes} * slots; }
  LPN_BOTH int inputs_at() const { return spilled ? 0 : slot_bytes * slots; }
  LPN_BOTH int sum_at() const { return inputs_at() + input_bytes * inputs; }
  LPN_BOTH int parts_at() const { return sum_at() + sum_bytes; }
  LPN_BOTH int bytes() const { return parts_at() + part_bytes; }
};

LPN_BOTH inline int slots_of(Operation operation, int stages) {
  switch (operation) {
    case Operation::prox:
      return stages;  // z, overwritten by e
    case Operation::hvp:
      return 2 * stages + 2;  // z and the curvature term; two that take turns
    case Operation::vjp:
      return 2 * stages + 2;  // z and e, then the source of delta; two that take turns
    case Operation::solve:
      return 3 * stages + 2;  // z, the curvature and its products; two that take turns
  }
  return 0;
}

LPN_BOTH inline TeamLayout team_layout(Operation operation,
                                       int stages,
                                       int tiles,
                                       int dim_tiles,
                                       int row_tiles,
                                       int team,
                                       int element_bytes,
                                       int parts,
                                       bool spilled) {
  TeamLayout layout{};
  layout.spilled = spilled;
  layout.slot_bytes = row_tiles * tiles * 2 * 64 * element_bytes;
  layout.slots = slots_of(operation, stages);
  layout.input_bytes = row_tiles * dim_tiles * 2 * 64 * element_bytes * parts;
  layout.inputs = operation == Operation::prox ? 1 : 2;  // x, v
  layout.sum_bytes = row_tiles * dim_tiles * 32 * 4 * 4;
  layout.part_bytes = team * row_tiles * 16 * 4;  // psi of every row, from the columns of each warp
  return layout;
}

// Bytes at the start of shared memory that all warps of a block share: weights if resident, vectors, scales.
LPN_BOTH inline int64_t shared_head_bytes(const PackedLayout& layout, bool resident) {
  return (resident ? layout.weight_bytes() : 0) + layout.vector_bytes() +
         layout.stages * static_cast<int64_t>(sizeof(StageScale));
}

// What vjp keeps besides, per team: p of every row, and the largest cotangent of every warp, in 16-byte
// steps.
LPN_BOTH inline int vjp_extra_bytes(int rows_per_team, int team) {
  return (rows_per_team + (team + 3) / 4 * 4) * 4;
}

// What solve keeps besides, per team: its vectors, in float32.
constexpr int solve_vectors = 8;
LPN_BOTH inline int solve_extra_bytes(int row_tiles, int dim_tiles) {
  return solve_vectors * row_tiles * dim_tiles * 32 * 4 * 4;
}

// One launch. Pointers are device memory; rows may be zero.
struct MlpCall {
  MlpProblem problem;
  const float* __restrict__ parameters;      // P [parameter_count], for c and c0
  const unsigned char* __restrict__ packed;  // PackedLayout
  const float* __restrict__ x;               // [rows, d]
  const float* __restrict__ v;               // [rows, d] or nullptr
  const float* __restrict__ p;               // [rows] or nullptr
  float* __restrict__ psi;                   // [rows] or nullptr
  float* __restrict__ f;                     // [rows, d] or nullptr
  float* __restrict__ hv;                    // [rows, d] or nullptr: H v, or for vjp  H v + p f
  float* __restrict__ partial;               // [blocks, parameter_count], vjp only
  unsigned char* spilled;                    // [blocks, teams, slots], or nullptr: they lie in shared memory
  int64_t rows;
};

// How a row ended; lpn_fast/ops/solve/descent.py has the same numbers.
enum Verdict : int64_t { converged, iterations_used, stalled, outside, invalid, searching = -1 };

// One launch of the solver for  t u + (1 - t) f(u) = z.
struct SolveCall {
  MlpCall mlp;                       // x = z, v = start, p = t [rows]; f, psi and hv = u are results
  double* __restrict__ residual;     // [rows] |r| / scale
  int64_t* __restrict__ iterations;  // [rows]
  int64_t* __restrict__ verdict;     // [rows]
  double tol;
  double radius;  // in units of max(|z|, sqrt(d)); infinity if solutions are known to exist
  int32_t max_iter;
};

}  // namespace lpn
