// psi and f = grad psi in one pass over the rows; nothing but x, psi and f touches device memory.
//
//   f   = 1/kappa sum_l (kappa A_l)^T e_l + c + alpha x
//   psi = sum_l (w_l . z_l + g_l . z_l^2) + c . x + c0 + alpha/2 |x|^2
//
// 2F for f and psi, 4 (2 d + 1) bytes per row. Rows are dealt to the warps of all blocks in turn.

#pragma once

#include "mlp_sweeps.h"

namespace lpn {

// c_j and c0, zero where the network has none.
LPN_DEVICE float linear_term(const MlpCall& call, int j) {
  return call.problem.linear < 0 ? 0.0f : simt::constant_load(call.parameters + call.problem.linear + j);
}
LPN_DEVICE float constant_term(const MlpCall& call) {
  return call.problem.constant < 0 ? 0.0f : simt::constant_load(call.parameters + call.problem.constant);
}

// psi [rows] from the parts that value<true> left.
template <class Sweeps>
LPN_DEVICE void store_psi(const MlpCall& call, const Sweeps& rows, typename Sweeps::PerRow& parts) {
  const float inverse_kappa = 1.0f / (call.problem.beta * log2_e);
#pragma unroll
  for (int r = 0; r < Sweeps::R; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) parts[r][half] *= inverse_kappa;
  rows.each_entry(call.problem.dim, [&](int64_t at, int column, int r, int, int half, int) {
    const float x = call.x[at];
    parts[r][half] += x * (linear_term(call, column) + 0.5f * call.problem.alpha * x);
  });
#pragma unroll
  for (int r = 0; r < Sweeps::R; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float psi = Sweeps::row_sum(parts[r][half]) + constant_term(call);
      const int row = r * 16 + half * 8 + (simt::lane() >> 2);
      if ((simt::lane() & 3) == 0 && row < rows.rows_here) call.psi[rows.first_row + row] = psi;
    }
}

// f [rows, d] from the sums that prox() left.
template <class Sweeps>
LPN_DEVICE void store_f(const MlpCall& call, const Sweeps& rows) {
  const float inverse_kappa = 1.0f / (call.problem.beta * log2_e);
  rows.each_entry(call.problem.dim, [&](int64_t at, int column, int r, int tile, int half, int i) {
    const float sum = rows.unscaled(rows.sum_at(r, tile)[2 * half + i]);
    call.f[at] = sum * inverse_kappa + linear_term(call, column) + call.problem.alpha * call.x[at];
  });
}

// x of the rows as an operand, then the value sweep, with psi if it is wanted.
template <class Sweeps>
LPN_DEVICE void evaluate_potential(const MlpCall& call, const Sweeps& rows) {
  typename Sweeps::PerRow ones, psi;
#pragma unroll
  for (int r = 0; r < Sweeps::R; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) ones[r][half] = 1.0f, psi[r][half] = 0.0f;
  rows.load(rows.input, call.x, call.problem.dim, ones);
  if (call.psi) {
    rows.template value<true>(psi);
    store_psi(call, rows, psi);
  } else {
    rows.template value<false>(psi);
  }
}

// The memory of this warp, after what the block shares.
template <class K>
LPN_DEVICE unsigned char* warp_memory(const Network<K>& net,
                                      const WarpLayout& layout,
                                      unsigned char* shared) {
  return shared + shared_head_bytes(net.layout, K::resident) + simt::warp() * layout.bytes();
}

template <class K>
LPN_DEVICE WarpLayout layout_for(Operation operation, const MlpProblem& problem) {
  return warp_layout(operation, problem.stage_count, problem.tiles, problem.dim_tiles, K::row_tiles,
                     static_cast<int>(sizeof(typename K::Number::Element)), K::Number::input_parts);
}

template <class K>
LPN_DEVICE void prox(const MlpCall& call, unsigned char* shared) {
  const Network<K> net = load_network<K>(call, shared);
  const WarpLayout layout = layout_for<K>(Operation::prox, call.problem);
  Sweeps<K, Operation::prox> rows(net, layout, warp_memory(net, layout, shared));
  const int64_t warps = simt::threads() / simt::lanes;
  for (int64_t i = simt::block() * warps + simt::warp(); i * K::rows < call.rows;
       i += simt::blocks() * warps) {
    rows.move_to(i * K::rows, call.rows);
    evaluate_potential(call, rows);
    rows.prox();
    store_f(call, rows);
  }
}

}  // namespace lpn
