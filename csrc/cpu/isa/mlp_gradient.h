// Parameter gradients of  sum over rows of (p psi + <v, f>)  for one block of rows, added to a partial
// gradient.
//
//   [dW_l | dA_l] += e_l x [dz_{l-1} | v] + delta_l x [z_{l-1} | x]        outer products summed over the
//   rows db_l += sum delta_l;   dh_l += sum (dz_l + p z_l);   dg_l += sum (2 z_l dz_l + p z_l^2) dc   += sum
//   (v + p x);   dc0 += sum p
//
// delta_l already contains p e_l (mlp_sweeps.h). Core and skip side by side make one product with the rows as
// depth: the two outer products are two terms of it, and for a small d the skip costs a few more columns
// instead of a tile of its own. Only its operand must be turned to have rows outermost; e and delta serve as
// weights as they are.

#pragma once

#include "../kernels.h"
#include "product.h"
#include "transpose.h"

namespace lpn {
namespace {

// columns = [lower | input] with rows outermost; the padding to stage.columns is left alone and its products
// are never read.
inline void gather_columns(const Mlp& mlp,
                           int64_t l,
                           const float* values,  // [units, block_rows]
                           const float* input,   // [d, block_rows]
                           int64_t rows,
                           float* columns) {  // [rows, stage.columns]
  const MlpStage& stage = mlp.stages[l];
  int64_t at = 0;
  if (stage.core) {
    const MlpStage& lower = mlp.stages[l - 1];
    transpose(values + lower.first_unit * block_rows, block_rows, columns, stage.columns, lower.width, rows);
    at = lower.width;
  }
  if (stage.skip) transpose(input, block_rows, columns + at, stage.columns, mlp.dim, rows);
}

template <bool has_tangent>
void matrix_gradient(const Mlp& mlp, const MlpBlock& block, int64_t l, float* partial) {
  const MlpStage& stage = mlp.stages[l];
  if (!stage.core && !stage.skip) return;
  const int64_t at = stage.first_unit * block_rows;
  int64_t count = 0;
  gather_columns(mlp, l, block.z, block.x, block.row_lanes, block.z_columns);
  block.terms[count++] = {block.delta + at, block_rows, 1, block.z_columns, stage.columns, block.row_lanes};
  if (has_tangent) {
    gather_columns(mlp, l, block.dz, block.v, block.row_lanes, block.dz_columns);
    block.terms[count++] = {block.e + at, block_rows, 1, block.dz_columns, stage.columns, block.row_lanes};
  }
  float* matrix = partial + stage.matrix_at;
  product(block.terms, count, stage.width, stage.columns, [=](int64_t unit, int64_t column, Vec sum) {
    float* to = matrix + unit * stage.columns + column;
    store(to, load(to) + sum);
  });
}

// Sum over the rows of the block of  body(lane).
template <class Body>
inline float sum_of_rows(const MlpBlock& block, Body body) {
  Vec sum = {};
  for (int64_t lane = 0; lane < block.row_lanes; lane += lanes) sum += body(lane);
  return sum_of_lanes(sum);
}

template <bool has_tangent, bool has_value>
void vector_gradients(const Mlp& mlp, const MlpBlock& block, int64_t l, float* partial) {
  const MlpStage& stage = mlp.stages[l];
  for (int64_t unit = 0; unit < stage.width; ++unit) {
    const int64_t at = (stage.first_unit + unit) * block_rows;
    if (stage.bias)
      partial[stage.bias_at + unit] +=
          sum_of_rows(block, [&](int64_t lane) { return load(block.delta + at + lane); });
    if (stage.head)
      partial[stage.head_at + unit] += sum_of_rows(block, [&](int64_t lane) {
        Vec sum = {};
        if (has_tangent) sum += load(block.dz + at + lane);
        if (has_value) sum += load(block.p + lane) * load(block.z + at + lane);
        return sum;
      });
    if (stage.head_sq)
      partial[stage.head_sq_at + unit] += sum_of_rows(block, [&](int64_t lane) {
        const Vec z = load(block.z + at + lane);
        Vec sum = {};
        if (has_tangent) sum += 2.0f * load(block.dz + at + lane);
        if (has_value) sum += load(block.p + lane) * z;
        return sum * z;
      });
  }
}

template <bool has_tangent, bool has_value>
void affine_gradients(const Mlp& mlp, const MlpBlock& block, float* partial) {
  for (int64_t j = 0; mlp.linear && j < mlp.dim; ++j)
    partial[mlp.linear_at + j] += sum_of_rows(block, [&](int64_t lane) {
      Vec sum = {};
      if (has_tangent) sum += load(block.v + j * block_rows + lane);
      if (has_value) sum += load(block.p + lane) * load(block.x + j * block_rows + lane);
      return sum;
    });
  if (mlp.constant && has_value)
    partial[mlp.constant_at] += sum_of_rows(block, [&](int64_t lane) { return load(block.p + lane); });
}

template <bool has_tangent, bool has_value>
void parameter_gradient(const Mlp& mlp, const MlpBlock& block, float* partial) {
  for (int64_t l = 0; l < mlp.stage_count; ++l) {
    matrix_gradient<has_tangent>(mlp, block, l, partial);
    vector_gradients<has_tangent, has_value>(mlp, block, l, partial);
  }
  affine_gradients<has_tangent, has_value>(mlp, block, partial);
}

}  // namespace
}  // namespace lpn
