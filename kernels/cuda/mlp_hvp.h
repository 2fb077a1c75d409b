// H v = grad^2 psi(x) v, and on the way f and psi where they are asked for.
//
//   H v = 1/kappa sum_l (kappa A_l)^T delta_l + alpha v
//
// 4F. H v is linear in v, so every row is multiplied by the power of two that brings kappa |v| near one:
// cotangents of any size go through 16-bit numbers.

#pragma once

#include "mlp_prox.h"

namespace lpn {

template <class K>
LPN_DEVICE void hvp(const MlpCall& call, unsigned char* shared) {
  const Network<K> net = load_network<K>(call, shared);
  const TeamLayout layout = layout_for<K>(Operation::hvp, call);
  Sweeps<K, Operation::hvp> rows(net, layout, team_memory(net, layout, shared),
                                 spilled_slots<K>(call, layout));
  using PerRow = typename decltype(rows)::PerRow;
  const float kappa = call.problem.beta * log2_e;
  const int dim = call.problem.dim;
  const int64_t teams = teams_of_block<K>();
  for (int64_t i = simt::block() * teams + simt::warp() / K::team; i * K::rows < call.rows;
       i += simt::blocks() * teams) {
    rows.move_to(i * K::rows, call.rows);
    evaluate_potential(call, rows);
    rows.prox();
    if (call.f) store_f(call, rows);

    PerRow size, factor;
#pragma unroll
    for (int r = 0; r < K::row_tiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) size[r][half] = 0.0f;
    rows.template each_entry<true>(dim, [&](int64_t at, int, int r, int, int half, int) {
      size[r][half] = larger(size[r][half], simt::as_float(simt::as_bits(call.v[at]) & 0x7fffffffu));
    });
#pragma unroll
    for (int r = 0; r < K::row_tiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        size[r][half] = power_of_two(kappa * rows.row_maximum(size[r][half]));
        factor[r][half] = 1.0f / size[r][half];
      }
    rows.load(rows.direction, call.v, dim, factor);
    rows.tangent();
    for (int l = rows.stages() - 1; l >= 0; --l) rows.adjoint(l);
    rows.each_entry(dim, [&](int64_t at, int, int r, int tile, int half, int k) {
      const float sum = rows.unscaled(rows.sum_at(r, tile)[2 * half + k]);
      call.hv[at] = sum / kappa * size[r][half] + call.problem.alpha * call.v[at];
    });
  }
}

}  // namespace lpn
