// What one block of rows goes through: load, sweeps, store.
//
//   mlp_prox    psi, f = grad psi                                       2F, and the tape (z, e) if asked for
//   mlp_hvp     H v = sum_l A_l^T delta_l + alpha v                     4F, 2F from a tape
//   mlp_vjp     gx = H v + p f  and the parameter gradient              6F, 4F from a tape
//
// with F = one forward product chain.
//
// A short block computes only as many vectors as its rows fill, which is what makes single samples quick. The
// rows that round it up are zero, and so are their cotangents: something finite that adds nothing to a
// gradient.

#pragma once

#include "../kernels.h"
#include "mlp_gradient.h"
#include "mlp_sweeps.h"
#include "transpose.h"

namespace lpn {
namespace {

inline MlpBlock block_for(
    const Mlp& mlp, const MlpBlock& scratch, const MlpTape& tape, int64_t first, int64_t count) {
  MlpBlock block = scratch;
  block.row_lanes = (count + lanes - 1) / lanes * lanes;
  if (tape.z) block.z = tape.z + first * mlp.units;
  if (tape.e) block.e = tape.e + first * mlp.units;
  return block;
}

inline void load_rows(const float* from, float* to, int64_t dim, int64_t first, int64_t count) {
  // from: [rows, d], to: [d, block_rows]
  transpose(from + first * dim, dim, to, block_rows, count, dim);
  for (int64_t j = 0; j < dim; ++j)
    for (int64_t i = count; i < block_rows; ++i) to[j * block_rows + i] = 0.0f;
}

inline void store_rows(const float* from, float* to, int64_t dim, int64_t first, int64_t count) {
  // from: [d, block_rows], to: [rows, d]
  transpose(from, block_rows, to + first * dim, dim, dim, count);
}

// result = body(j, i) on [d, block_rows], the part of a gradient that does not go through the stages.
template <class Body>
inline void start_result(const Mlp& mlp, const MlpBlock& block, Body body) {
  for (int64_t j = 0; j < mlp.dim; ++j)
    for (int64_t lane = 0; lane < block.row_lanes; lane += lanes)
      store(block.result + j * block_rows + lane, body(j, j * block_rows + lane, lane));
}

void mlp_prox_block(
    const Mlp& mlp, const MlpBlock& scratch, const MlpProx& io, int64_t first, int64_t count) {
  const MlpBlock block = block_for(mlp, scratch, io.tape, first, count);
  load_rows(io.x, block.x, mlp.dim, first, count);
  value_sweep<false>(mlp, block);
  if (io.psi) potential(mlp, block, io.psi + first, count);
  prox_sweep<false>(mlp, block);
  start_result(mlp, block, [&](int64_t j, int64_t i, int64_t) {
    return value_or_zero(mlp.linear, j) + mlp.alpha * load(block.x + i);
  });
  collect(mlp, block, block.e);
  store_rows(block.result, io.f, mlp.dim, first, count);
}

// z, s, e, dz and curvature, from the tape or from x.
void sweeps_to_tangent(const Mlp& mlp, const MlpBlock& block, const MlpTape& tape) {
  if (tape.z) return tangent_sweep<true>(mlp, block);
  value_sweep<true>(mlp, block);
  prox_sweep<true>(mlp, block);
  tangent_sweep<false>(mlp, block);
}

void mlp_hvp_block(const Mlp& mlp, const MlpBlock& scratch, const MlpHvp& io, int64_t first, int64_t count) {
  const MlpBlock block = block_for(mlp, scratch, io.tape, first, count);
  load_rows(io.x, block.x, mlp.dim, first, count);
  load_rows(io.v, block.v, mlp.dim, first, count);
  sweeps_to_tangent(mlp, block, io.tape);
  adjoint_sweep<true, false>(mlp, block);
  start_result(mlp, block, [&](int64_t, int64_t i, int64_t) { return mlp.alpha * load(block.v + i); });
  collect(mlp, block, block.delta);
  store_rows(block.result, io.out, mlp.dim, first, count);
}

template <bool has_tangent, bool has_value>
void mlp_vjp_block(
    const Mlp& mlp, const MlpBlock& scratch, const MlpVjp& io, int64_t first, int64_t count, float* partial) {
  const MlpBlock block = block_for(mlp, scratch, has_tangent ? io.tape : MlpTape{}, first, count);
  load_rows(io.x, block.x, mlp.dim, first, count);
  if (has_tangent) load_rows(io.v, block.v, mlp.dim, first, count);
  if (has_value) load_rows(io.p, block.p, 1, first, count);
  if (has_tangent)
    sweeps_to_tangent(mlp, block, io.tape);
  else
    value_sweep<false>(mlp, block);
  adjoint_sweep<has_tangent, has_value>(mlp, block);
  parameter_gradient<has_tangent, has_value>(mlp, block, partial);
  if (!io.gx) return;
  start_result(mlp, block, [&](int64_t j, int64_t i, int64_t lane) {
    Vec sum = {};
    if (has_tangent) sum += mlp.alpha * load(block.v + i);
    if (has_value)
      sum += load(block.p + lane) * (value_or_zero(mlp.linear, j) + mlp.alpha * load(block.x + i));
    return sum;
  });
  collect(mlp, block, block.delta);
  store_rows(block.result, io.gx, mlp.dim, first, count);
}

void mlp_vjp_any(
    const Mlp& mlp, const MlpBlock& block, const MlpVjp& io, int64_t first, int64_t count, float* partial) {
  if (io.v && io.p) return mlp_vjp_block<true, true>(mlp, block, io, first, count, partial);
  if (io.v) return mlp_vjp_block<true, false>(mlp, block, io, first, count, partial);
  if (io.p) return mlp_vjp_block<false, true>(mlp, block, io, first, count, partial);
}

}  // namespace
}  // namespace lpn
