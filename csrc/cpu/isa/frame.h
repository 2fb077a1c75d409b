// psi and f = grad psi of a squared first stage under gates of single pixels, some rows of an image at a
// time.
//
//   c = K x,   z_1 = c^2,   u_l = W_l z_{l-1} + b_l,   z_l = softplus(u_l),   psi = sum_l w_l . z_l,  l > 1
//   e_l = s_l (W_{l+1}^T e_{l+1} + w_l),               e_1 = 2 c (W_2^T e_2 + w_1),       f = K^T e_1
//
// The gates of a pixel are a dense network of z_1, an Mlp whose first skip is W_2 and whose linear term is
// w_1. In the last stage units may compete for one z_L instead (competing.h). Only x is read and only sums
// for f are written: of a row of coefficients c, then e_1, stays in L2 (98 KB of 49 filters and 481 pixels),
// of 64 pixels the rest. Per pixel 2 (units channels kernel^2 + gates units) multiply-adds, 14,210 for 49
// filters of 7 x 7 and 96 gates, against some 20 instructions for each gate: the products decide.

#pragma once

#include "competing.h"
#include "frame_maps.h"
#include "frame_value.h"

namespace lpn {
namespace {

// The gates of a tile upwards; of the last stage e instead of z and s.
template <bool with_value, bool mirrored>
void gates_upwards(const Mlp& gates,
                   const MlpBlock& block,
                   const SoftplusRates& rates,
                   int64_t count,
                   FrameValue<mirrored>& value) {
  const float* below = block.x;
  for (int64_t l = 0; l < gates.stage_count; ++l) {
    const MlpStage& stage = gates.stages[l];
    const int64_t first = stage.first_unit * block_rows, depth = units_below(gates, l);
    const bool last = l + 1 == gates.stage_count;
    block.terms[0] = {gate_weights(gates, l), depth, 1, below, block_rows, depth};
    if (stage.competing) {
      float* z = block.z + first;
      soft_maximum(gates, stage, block.terms, 1, count, *stage.head, block.e + first, z);
      if (with_value) value.add(stage.head, z, stage.outputs);
      continue;
    }
    product(block.terms, 1, stage.width, count, [&](int64_t unit, int64_t lane, auto sum) {
      const auto u = sum + stage.bias[unit];
      const int64_t i = first + unit * block_rows + lane;
      if (last) {
        const auto slope = slopes(u, rates);
        store(block.e + i, slope.s * stage.head[unit]);
        if (with_value) value.add_gate(unit, lane, u, slope.decayed);
      } else {
        const auto active = activate(u, rates);
        store(block.z + i, active.z);
        store(block.s + i, active.s);
      }
    });
    below = block.z + first;
    if (with_value && !last) value.add(stage.head, below, stage.width);
  }
}

// e_1 of a tile in the place of c; c: [units, line], of its first pixel.
template <bool mirrored>
void gates_downwards(
    const Frame& op, const Mlp& gates, const MlpBlock& block, float* c, int64_t count, RowWeights weights) {
  const auto finish = [&](int64_t unit, int64_t lane, auto sum) {
    float* at = c + unit * op.line + lane;
    const auto above = gates.linear ? sum + gates.linear[unit] : sum;
    const auto e = load(sum, at) * (above + above);
    if constexpr (mirrored)
      store(at, weights.times(e, lane));
    else
      store(at, e);
  };
  if (!gates.stage_count) return product(block.terms, 0, op.units, count, finish);
  for (int64_t l = gates.stage_count - 1; l >= 0; --l) {
    const MlpStage& stage = gates.stages[l];
    const int64_t depth = units_below(gates, l);
    block.terms[0] = {
        gate_weights(gates, l), 1, depth, block.e + stage.first_unit * block_rows, block_rows, stage.width};
    if (l == 0) return product(block.terms, 1, depth, count, finish);
    const MlpStage& lower = gates.stages[l - 1];
    product(block.terms, 1, depth, count, [&](int64_t unit, int64_t lane, auto sum) {
      const int64_t i = (lower.first_unit + unit) * block_rows + lane;
      const auto above = lower.head ? sum + lower.head[unit] : sum;
      store(block.e + i, load(sum, block.s + i) * above);
    });
  }
}

template <bool with_value, bool mirrored>
void prox_rows(
    const Frame& op, const FrameScratch& scratch, const FrameProx& io, int64_t begin, int64_t end) {
  const Mlp& gates = *io.gates;
  const MlpBlock& block = *scratch.gates;
  const SoftplusRates rates(gates.beta);
  FrameValue<mirrored> value(gates, rates, scratch.sums);
  float* first = scratch.c + (mirrored ? op.kernel - 1 : 0);
  continue_rows(op, io.x, scratch.lines, begin, end);
  clear_sums(op, io.sum, end - begin);
  for_each_tile(
      op, end - begin,
      [&](int64_t row, int64_t at, int64_t count, int64_t pixels) {
        const RowWeights weights = weights_of(op, begin + row, at);
        if (with_value) value.start(count, pixels, weights);
        coefficients(op, scratch.terms, scratch.lines + row * op.channels * op.line + at, count,
                     [&](int64_t unit, int64_t lane, auto c) {
                       store(first + unit * op.line + at + lane, c);
                       store(block.x + unit * block_rows + lane, c * c);
                     });
        if (with_value) value.add(gates.linear, block.x, op.units);
        gates_upwards<with_value>(gates, block, rates, count, value);
        gates_downwards<mirrored>(op, gates, block, first + at, count, weights);
      },
      [&](int64_t row) {
        add_adjoint(op, scratch.terms, scratch.c, io.sum + row * op.channels * op.sum_line);
      });
  if (!with_value) return;
  const int64_t last = op.height < end ? op.height : end;  // the rows of the image that are this block's
  for (int64_t i = (op.kernel - 1) * op.channels; i < (last - begin + op.kernel - 1) * op.channels; ++i)
    value.add_squares(scratch.lines + i * op.line + (mirrored ? op.kernel - 1 : 0),
                      mirrored ? op.width : op.line, 0.5f * op.alpha);
  *io.psi = value.total();
}

void frame_prox(
    const Frame& op, const FrameScratch& scratch, const FrameProx& io, int64_t begin, int64_t end) {
  if (op.mirror.rows)
    return io.psi ? prox_rows<true, true>(op, scratch, io, begin, end)
                  : prox_rows<false, true>(op, scratch, io, begin, end);
  return io.psi ? prox_rows<true, false>(op, scratch, io, begin, end)
                : prox_rows<false, false>(op, scratch, io, begin, end);
}

}  // namespace
}  // namespace lpn
