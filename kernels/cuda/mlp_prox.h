// psi and f = grad psi in one pass over the rows; nothing but x, psi and f touches device memory.
//
//   f   = 1/kappa sum_l (kappa A_l)^T e_l + c + alpha x
//   psi = sum_l (w_l . z_l + g_l . z_l^2) + c . x + c0 + alpha/2 |x|^2
//
// 2F for f and psi, 4 (2 d + 1) bytes per row. Rows are dealt to the teams of all blocks in turn.

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

// psi [rows] from the parts that value() left.
template <class Sweeps>
LPN_DEVICE void store_psi(const MlpCall& call, const Sweeps& rows, typename Sweeps::PerRow& parts) {
  constexpr int rows_of_team = 16 * Sweeps::R;
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
      const float sum = Sweeps::row_sum(parts[r][half]);
      const int row = r * 16 + half * 8 + (simt::lane() >> 2);
      if ((simt::lane() & 3) == 0) rows.parts[Sweeps::member() * rows_of_team + row] = sum;
    }
  Sweeps::sync();
  if (Sweeps::member() == 0)
    for (int row = simt::lane(); row < rows.rows_here; row += simt::lanes) {
      float psi = constant_term(call);
      for (int member = 0; member < Sweeps::team; ++member) psi += rows.parts[member * rows_of_team + row];
      call.psi[rows.first_row + row] = psi;
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

// x of the rows as an operand, then the value sweep, with psi if it is asked for.
template <class Sweeps>
LPN_DEVICE void evaluate_potential(const MlpCall& call, const Sweeps& rows) {
  typename Sweeps::PerRow ones, psi;
#pragma unroll
  for (int r = 0; r < Sweeps::R; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) ones[r][half] = 1.0f, psi[r][half] = 0.0f;
  rows.load(rows.input, call.x, call.problem.dim, ones);
  rows.value(call.psi != nullptr, psi);
  if (call.psi) store_psi(call, rows, psi);
}

// The memory of this team, after what the block shares.
template <class K>
LPN_DEVICE unsigned char* team_memory(const Network<K>& net,
                                      const TeamLayout& layout,
                                      unsigned char* shared) {
  return shared + shared_head_bytes(net.layout, K::resident) + simt::warp() / K::team * layout.bytes();
}

template <class K>
LPN_DEVICE TeamLayout layout_for(Operation operation, const MlpCall& call) {
  const MlpProblem& problem = call.problem;
  return team_layout(operation, problem.stage_count, problem.tiles, problem.dim_tiles, K::row_tiles, K::team,
                     static_cast<int>(sizeof(typename K::Number::Element)), K::Number::input_parts,
                     call.spilled);
}

template <class K>
LPN_DEVICE int64_t teams_of_block() {
  return simt::threads() / (simt::lanes * K::team);
}

// The slots of this team where they lie in device memory.
template <class K>
LPN_DEVICE unsigned char* spilled_slots(const MlpCall& call, const TeamLayout& layout) {
  const int64_t team = simt::block() * teams_of_block<K>() + simt::warp() / K::team;
  return call.spilled ? call.spilled + team * layout.all_slots() : nullptr;
}

template <class K>
LPN_DEVICE void prox(const MlpCall& call, unsigned char* shared) {
  const Network<K> net = load_network<K>(call, shared);
  const TeamLayout layout = layout_for<K>(Operation::prox, call);
  Sweeps<K, Operation::prox> rows(net, layout, team_memory(net, layout, shared),
                                  spilled_slots<K>(call, layout));
  const int64_t teams = teams_of_block<K>();
  for (int64_t i = simt::block() * teams + simt::warp() / K::team; i * K::rows < call.rows;
       i += simt::blocks() * teams) {
    rows.move_to(i * K::rows, call.rows);
    evaluate_potential(call, rows);
    rows.prox();
    store_f(call, rows);
  }
}

}  // namespace lpn
