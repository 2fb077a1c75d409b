// Parameter gradients of  sum over rows of (p psi + <v, f>)  for one block of rows, added to a partial
// gradient.
//
//   [dW_l | dA_l] += e_l x [dz_{l-1} | v] + delta_l x [z_{l-1} | x]        outer products summed over the
//   rows db_l += sum delta_l;   dh_l += sum (dz_l + p z_l);   dg_l += sum (2 z_l dz_l + p z_l^2) dc   += sum
//   (v + p x);   dc0 += sum p
//
// delta_l already contains p e_l (mlp_sweeps.h). Core and skip side by side make one product with the rows as
// depth: the two outer products are two terms of it. Only its operand must be turned to have rows outermost;
// e and delta serve as weights as they are.
//
// The last few columns, where they would fill little of a vector (3 of 51 for 50 units and one input), and
// all vectors are sums over rows instead: kept lane by lane from block to block, and added up once at the
// end.

#pragma once

#include "../kernels.h"
#include "mlp_sweeps.h"
#include "product.h"
#include "transpose.h"

namespace lpn {
namespace {

// Column `at` of [lower | input], with the rows along it.
inline const float* column(
    const Mlp& mlp, const MlpStage& stage, const float* lower, const float* input, int64_t at) {
  // lower: [units of the stage below, block_rows] or nullptr, input: [d, block_rows]
  const int64_t core_columns = stage.core ? (&stage - 1)->width : 0;
  return at < core_columns ? lower + at * block_rows : input + (at - core_columns) * block_rows;
}

// columns = the first stage.columns of [lower | input] with rows outermost; what pads them is left alone and
// its products are never read.
inline void gather_columns(const Mlp& mlp,
                           const MlpStage& stage,
                           const float* lower,  // [units of the stage below, block_rows] or nullptr
                           const float* input,  // [d, block_rows]
                           int64_t rows,
                           float* columns) {  // [rows, stage.columns]
  const int64_t core_columns = stage.core ? (&stage - 1)->width : 0;
  const int64_t from_core = core_columns < stage.columns ? core_columns : stage.columns;
  if (from_core) transpose(lower, block_rows, columns, stage.columns, from_core, rows);
  const int64_t rest = stage.columns - from_core;
  const int64_t from_skip = !stage.skip ? 0 : rest < mlp.dim ? rest : mlp.dim;
  if (from_skip) transpose(input, block_rows, columns + from_core, stage.columns, from_skip, rows);
}

template <bool has_tangent>
void matrix_gradient(const Mlp& mlp, const MlpBlock& block, int64_t l, float* partial) {
  const MlpStage& stage = mlp.stages[l];
  if (!stage.columns) return;
  const int64_t at = stage.first_unit * block_rows;
  int64_t count = 0;
  gather_columns(mlp, stage, below(mlp, l, block.z), block.x, block.row_lanes, block.z_columns);
  block.terms[count++] = {block.delta + at, block_rows, 1, block.z_columns, stage.columns, block.row_lanes};
  if (has_tangent) {
    gather_columns(mlp, stage, below(mlp, l, block.dz), block.v, block.row_lanes, block.dz_columns);
    block.terms[count++] = {block.e + at, block_rows, 1, block.dz_columns, stage.columns, block.row_lanes};
  }
  float* matrix = partial + stage.matrix_at;
  product(block.terms, count, stage.width, stage.columns, [=](int64_t unit, int64_t first, auto sum) {
    float* to = matrix + unit * stage.columns + first;
    store(to, load(sum, to) + sum);
  });
}

// The last `tail` columns of [dW | dA], and db.
template <bool has_tangent, int tail>
void tail_gradient(const Mlp& mlp, const MlpBlock& block, int64_t l, float* partial) {
  const MlpStage& stage = mlp.stages[l];
  const float* z[tail + 1];
  const float* dz[tail + 1];
  for (int c = 0; c < tail; ++c) {
    z[c] = column(mlp, stage, below(mlp, l, block.z), block.x, stage.columns + c);
    dz[c] = column(mlp, stage, below(mlp, l, block.dz), block.v, stage.columns + c);
  }
  for (int64_t unit = 0; unit < stage.width; ++unit) {
    const int64_t at = (stage.first_unit + unit) * block_rows;
    Vec bias = {};
    Vec sum[tail + 1] = {};
    for (int64_t lane = 0; lane < block.row_lanes; lane += lanes) {
      const Vec delta = load(block.delta + at + lane);
      const Vec e = has_tangent ? load(block.e + at + lane) : Vec{};
      bias += delta;
      for (int c = 0; c < tail; ++c) {
        sum[c] += delta * load(z[c] + lane);
        if (has_tangent) sum[c] += e * load(dz[c] + lane);
      }
    }
    if (stage.bias) add_lanes(partial + stage.bias_at + unit * sum_lanes, bias);
    for (int c = 0; c < tail; ++c) add_lanes(partial + stage.tail_at + (unit * tail + c) * sum_lanes, sum[c]);
  }
}

template <bool has_tangent>
void tail_gradient(const Mlp& mlp, const MlpBlock& block, int64_t l, float* partial) {
  switch (mlp.stages[l].tail) {
    case 0:
      if (mlp.stages[l].bias) tail_gradient<has_tangent, 0>(mlp, block, l, partial);
      break;
    case 1:
      tail_gradient<has_tangent, 1>(mlp, block, l, partial);
      break;
    case 2:
      tail_gradient<has_tangent, 2>(mlp, block, l, partial);
      break;
    case 3:
      tail_gradient<has_tangent, 3>(mlp, block, l, partial);
      break;
    default:
      tail_gradient<has_tangent, 4>(mlp, block, l, partial);
      break;
  }
}

// Sum over the rows of the block of  body(lane).
template <class Body>
inline Vec sum_of_rows(const MlpBlock& block, Body body) {
  Vec sum = {};
  for (int64_t lane = 0; lane < block.row_lanes; lane += lanes) sum += body(lane);
  return sum;
}

template <bool has_tangent, bool has_value>
void head_gradients(const Mlp& mlp, const MlpBlock& block, int64_t l, float* partial) {
  const MlpStage& stage = mlp.stages[l];
  if (!stage.head && !stage.head_sq) return;
  for (int64_t unit = 0; unit < stage.outputs; ++unit) {
    const int64_t at = (stage.first_unit + unit) * block_rows;
    if (stage.head)
      add_lanes(partial + stage.head_at + unit * sum_lanes, sum_of_rows(block, [&](int64_t lane) {
                  Vec sum = {};
                  if (has_tangent) sum += load(block.dz + at + lane);
                  if (has_value) sum += load(block.p + lane) * load(block.z + at + lane);
                  return sum;
                }));
    if (stage.head_sq)
      add_lanes(partial + stage.head_sq_at + unit * sum_lanes, sum_of_rows(block, [&](int64_t lane) {
                  const Vec z = load(block.z + at + lane);
                  Vec sum = {};
                  if (has_tangent) sum += 2.0f * load(block.dz + at + lane);
                  if (has_value) sum += load(block.p + lane) * z;
                  return sum * z;
                }));
  }
}

template <bool has_tangent, bool has_value>
void affine_gradients(const Mlp& mlp, const MlpBlock& block, float* partial) {
  for (int64_t j = 0; mlp.linear && j < mlp.dim; ++j)
    add_lanes(partial + mlp.linear_at + j * sum_lanes, sum_of_rows(block, [&](int64_t lane) {
                Vec sum = {};
                if (has_tangent) sum += load(block.v + j * block_rows + lane);
                if (has_value) sum += load(block.p + lane) * load(block.x + j * block_rows + lane);
                return sum;
              }));
  if (mlp.constant && has_value)
    add_lanes(partial + mlp.constant_at,
              sum_of_rows(block, [&](int64_t lane) { return load(block.p + lane); }));
}

template <bool has_tangent, bool has_value>
void parameter_gradient(const Mlp& mlp, const MlpBlock& block, float* partial) {
  for (int64_t l = 0; l < mlp.stage_count; ++l) {
    matrix_gradient<has_tangent>(mlp, block, l, partial);
    tail_gradient<has_tangent>(mlp, block, l, partial);
    head_gradients<has_tangent, has_value>(mlp, block, l, partial);
  }
  affine_gradients<has_tangent, has_value>(mlp, block, partial);
}

// totals[i] = sum over the chunks, in order and in double, for begin <= i < end.
void sum_partials(const MlpPartials& partials, int64_t begin, int64_t end) {
  constexpr int64_t strip = 64;  // doubles that stay in registers or at least in the first cache
  for (int64_t first = begin; first < end; first += strip) {
    const int64_t count = end - first < strip ? end - first : strip;
    double total[strip] = {};
    for (int64_t chunk = 0; chunk < partials.chunks; ++chunk) {
      const float* from = partials.values + chunk * partials.size + first;
      if (count == strip)
        for (int64_t i = 0; i < strip; ++i) total[i] += from[i];
      else
        for (int64_t i = 0; i < count; ++i) total[i] += from[i];
    }
    for (int64_t i = 0; i < count; ++i) partials.totals[first + i] = total[i];
  }
}

}  // namespace
}  // namespace lpn
