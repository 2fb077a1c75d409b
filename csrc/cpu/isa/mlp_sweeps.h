// The four sweeps of the dense network over one block of rows.
//
//   value     u_l = W_l z_{l-1} + A_l x + b_l;   z_l = softplus_beta(u_l);   s_l = sigma'(u_l);   r_l = 1 -
//   s_l
//             psi = sum_l (h_l . z_l + g_l . z_l^2) + c . x + c0 + alpha/2 |x|^2
//   prox      e_l = s_l (W_{l+1}^T e_{l+1} + h_l + 2 g_l z_l);               f = sum_l A_l^T e_l + c + alpha
//   x tangent   du_l = W_l dz_{l-1} + A_l v;       dz_l = s_l du_l adjoint   delta_l = s_l (W_{l+1}^T
//   delta_{l+1} + 2 g_l dz_l + p (h_l + 2 g_l z_l)) + e_l dz_l q_l
//
// Two rewritings. The source term e dz q needs no quotient: q s = beta r, so it is (beta r e) du, built up in
// place over three sweeps in the `curvature` buffer. And the adjoint sweep is linear in its cotangent, so the
// cotangent p of psi rides along: this delta_l is the  delta_l + p e_l  that all gradients are made of.
//
// Everything lies as [unit][row in block]; h_l = head, g_l = head_sq, c = linear, c0 = constant.

#pragma once

#include "../kernels.h"
#include "activation.h"
#include "competing.h"
#include "product.h"

namespace lpn {
namespace {

// Terms of  W_l lower + A_l input  (forward); returns their number.
inline int64_t forward_terms(const Mlp& mlp, int64_t l, const float* lower, const float* input, Term* terms) {
  // lower: [H_{l-1}, block_rows], input: [d, block_rows]
  const MlpStage& stage = mlp.stages[l];
  int64_t count = 0;
  if (stage.core) {
    const int64_t below = mlp.stages[l - 1].width;
    terms[count++] = {stage.core, below, 1, lower, block_rows, below};
  }
  if (stage.skip) terms[count++] = {stage.skip, mlp.dim, 1, input, block_rows, mlp.dim};
  return count;
}

// h of a unit that has one; those that compete share it.
inline float head_of(const MlpStage& stage, int64_t unit) { return stage.head[stage.competing ? 0 : unit]; }

// Terms of  W_{l+1}^T upper; returns their number, 0 for the last stage.
inline int64_t transposed_terms(const Mlp& mlp, int64_t l, const float* values, Term* terms) {
  // values: [units, block_rows]
  if (l + 1 == mlp.stage_count || !mlp.stages[l + 1].core) return 0;
  const MlpStage& above = mlp.stages[l + 1];
  const float* upper = values + above.first_unit * block_rows;
  terms[0] = {above.core, 1, mlp.stages[l].width, upper, block_rows, above.width};
  return 1;
}

inline const float* below(const Mlp& mlp,
                          int64_t l,
                          const float* values) {  // [units, block_rows] -> stage l - 1
  return l ? values + mlp.stages[l - 1].first_unit * block_rows : nullptr;
}

template <bool keep_curvature>
void value_sweep(const Mlp& mlp, const MlpBlock& block) {
  const float beta = mlp.beta;
  const SoftplusRates rates(beta);
  for (int64_t l = 0; l < mlp.stage_count; ++l) {
    const MlpStage& stage = mlp.stages[l];
    const int64_t count = forward_terms(mlp, l, below(mlp, l, block.z), block.x, block.terms);
    const int64_t at = stage.first_unit * block_rows;
    if (stage.competing) {
      soft_maximum(mlp, stage, block.terms, count, block.row_lanes, 1.0f, block.s + at, block.z + at);
      for (int64_t i = at; keep_curvature && i < at + stage.width * block_rows; i += lanes)
        store(block.curvature + i, broadcast(beta));
      continue;
    }
    product(block.terms, count, stage.width, block.row_lanes,
            [=, &rates](int64_t unit, int64_t lane, auto sum) {
              const auto active = activate(sum + value_or_zero(stage.bias, unit), rates);
              const int64_t i = at + unit * block_rows + lane;
              store(block.z + i, active.z);
              store(block.s + i, active.s);
              if (keep_curvature) store(block.curvature + i, active.r * beta);
            });
  }
}

template <bool keep_curvature>
void prox_sweep(const Mlp& mlp, const MlpBlock& block) {
  for (int64_t l = mlp.stage_count - 1; l >= 0; --l) {
    const MlpStage& stage = mlp.stages[l];
    const int64_t count = transposed_terms(mlp, l, block.e, block.terms);
    const int64_t at = stage.first_unit * block_rows;
    product(block.terms, count, stage.width, block.row_lanes, [=](int64_t unit, int64_t lane, auto sum) {
      const int64_t i = at + unit * block_rows + lane;
      auto above = stage.head ? sum + head_of(stage, unit) : sum;
      if (stage.head_sq) above = above + load(sum, block.z + i) * (2.0f * stage.head_sq[unit]);
      const auto e = load(sum, block.s + i) * above;
      store(block.e + i, e);
      if (keep_curvature) store(block.curvature + i, load(sum, block.curvature + i) * e);
    });
  }
}

// What a tape holds for two tiles further on: it lies in the last cache, some 50 ns away.
template <int count>
inline void fetch_ahead(const float* from, const Group<count>&) {
  for (int i = 0; i < count; ++i) __builtin_prefetch(from + 2 * tile_units * block_rows + i * lanes);
}

// With z and e from a tape, s and the curvature are made here, from z: s = 1 - 2^(-beta z log2 e), r = 1 - s.
template <bool from_tape>
void tangent_sweep(const Mlp& mlp, const MlpBlock& block) {
  const float beta = mlp.beta;
  for (int64_t l = 0; l < mlp.stage_count; ++l) {
    const MlpStage& stage = mlp.stages[l];
    const int64_t count = forward_terms(mlp, l, below(mlp, l, block.dz), block.v, block.terms);
    const int64_t at = stage.first_unit * block_rows;
    if (stage.competing) {
      soft_maximum_tangent(stage, block.terms, count, block);
      continue;
    }
    product(block.terms, count, stage.width, block.row_lanes, [=](int64_t unit, int64_t lane, auto du) {
      const int64_t i = at + unit * block_rows + lane;
      if (from_tape) {
        fetch_ahead(block.z + i, du);
        fetch_ahead(block.e + i, du);
        const auto slope = slope_of(load(du, block.z + i), beta);
        store(block.s + i, slope.s);
        store(block.dz + i, slope.s * du);
        store(block.curvature + i, slope.r * beta * load(du, block.e + i) * du);
        return;
      }
      store(block.dz + i, load(du, block.s + i) * du);
      store(block.curvature + i, load(du, block.curvature + i) * du);
    });
  }
}

// Cotangents of f (through dz and curvature, unless has_tangent is false) and of psi (through p).
template <bool has_tangent, bool has_value>
void adjoint_sweep(const Mlp& mlp, const MlpBlock& block) {
  for (int64_t l = mlp.stage_count - 1; l >= 0; --l) {
    const MlpStage& stage = mlp.stages[l];
    const int64_t count = transposed_terms(mlp, l, block.delta, block.terms);
    const int64_t at = stage.first_unit * block_rows;
    product(block.terms, count, stage.width, block.row_lanes, [=](int64_t unit, int64_t lane, auto above) {
      const int64_t i = at + unit * block_rows + lane;
      const float g = value_or_zero(stage.head_sq, unit);
      if (has_tangent && stage.head_sq) above = above + load(above, block.dz + i) * (2.0f * g);
      if (has_value && stage.head) above = above + load(above, block.p + lane) * head_of(stage, unit);
      if (has_value && stage.head_sq)
        above = above + load(above, block.p + lane) * load(above, block.z + i) * (2.0f * g);
      auto delta = load(above, block.s + i) * above;
      if (has_tangent) delta = delta + load(above, block.curvature + i);
      store(block.delta + i, delta);
    });
  }
}

// result += sum_l A_l^T values_l
void collect(const Mlp& mlp, const MlpBlock& block, const float* values) {  // values: [units, block_rows]
  int64_t count = 0;
  for (int64_t l = 0; l < mlp.stage_count; ++l) {
    const MlpStage& stage = mlp.stages[l];
    if (!stage.skip) continue;
    const float* source = values + stage.first_unit * block_rows;
    block.terms[count++] = {stage.skip, 1, mlp.dim, source, block_rows, stage.width};
  }
  product(block.terms, count, mlp.dim, block.row_lanes, [=](int64_t j, int64_t lane, auto sum) {
    float* to = block.result + j * block_rows + lane;
    store(to, load(sum, to) + sum);
  });
}

// psi of one block of rows, from the z of the value sweep.
void potential(const Mlp& mlp, const MlpBlock& block, float* psi, int64_t count) {  // psi: [count]
  for (int64_t lane = 0; lane < count; lane += lanes) {
    Vec sum = {};
    for (int64_t l = 0; l < mlp.stage_count; ++l) {
      const MlpStage& stage = mlp.stages[l];
      if (!stage.head && !stage.head_sq) continue;
      for (int64_t unit = 0; unit < stage.width; ++unit) {
        const Vec z = load(block.z + (stage.first_unit + unit) * block_rows + lane);
        if (stage.head) sum += stage.head[unit] * z;
        if (stage.head_sq) sum += stage.head_sq[unit] * (z * z);
      }
    }
    for (int64_t j = 0; j < mlp.dim; ++j) {
      const Vec x = load(block.x + j * block_rows + lane);
      sum += x * (value_or_zero(mlp.linear, j) + (0.5f * mlp.alpha) * x);
    }
    sum += value_or_zero(mlp.constant, 0);
    store(psi + lane, sum, count - lane < lanes ? count - lane : lanes);
  }
}

}  // namespace
}  // namespace lpn
