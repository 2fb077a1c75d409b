// H v + p f of a squared first stage under gates of single pixels, and the gradient of its parameters.
//
//   dc = K v,   dz_1 = 2 c dc;   g = phi'(z_1),   d = p g + phi''(z_1) dz_1,   phi: the gates, a network
//   e_1 = 2 c g,   delta_1 = 2 g dc + 2 c d;   H v + p f = K^T delta_1,   dK = e_1 (x) v + delta_1 (x) x
//
// Where a mirrored border gives positions weights, dz_1 and p are weighted, which all that is linear in them
// then is: the gradients of the gates, d. e_1 and the part of delta_1 with g are weighted at the end.
//
// All that happens in the gates is what mlp_sweeps.h and mlp_gradient.h do to a block of rows, here of
// pixels. What one needs of them is recomputed from x: 4F for H v, 7F with the gradient, and no activation in
// memory.

#pragma once

#include "frame_maps.h"
#include "mlp_gradient.h"
#include "mlp_sweeps.h"

namespace lpn {
namespace {

// result = p w_1 or w_1, what g has besides the stages.
inline void start_heads(const Mlp& gates,
                        const MlpBlock& block,
                        const float* p) {  // p: [block_rows] or nullptr
  for (int64_t j = 0; j < gates.dim; ++j)
    for (int64_t lane = 0; lane < block.row_lanes; lane += lanes) {
      const float head = value_or_zero(gates.linear, j);
      store(block.result + j * block_rows + lane, p ? load(p + lane) * head : broadcast(head));
    }
}

template <bool has_tangent, bool has_value, bool mirrored>
void second_rows(
    const Frame& op, const FrameScratch& scratch, const FrameSecond& io, int64_t begin, int64_t end) {
  const Mlp& gates = *io.gates;
  MlpBlock block = *scratch.gates;
  const int64_t before = mirrored ? op.kernel - 1 : 0;  // zeros, in rows of coefficients
  continue_rows(op, io.x, scratch.lines, begin, end);
  if (has_tangent) continue_rows(op, io.v, scratch.v_lines, begin, end);
  clear_sums(op, io.sum, end - begin);
  for_each_tile(
      op, end - begin,
      [&](int64_t row, int64_t at, int64_t count, int64_t pixels) {
        const int64_t below = row * op.channels * op.line + at, here = before + at;
        const RowWeights weights = weights_of(op, begin + row, at);
        const auto weighted = [weights](auto t, int64_t lane) {
          if constexpr (mirrored)
            return weights.times(t, lane);
          else
            return t;
        };
        block.row_lanes = count;
        for (int64_t i = 0; has_value && i < count; ++i) block.p[i] = i < pixels ? *io.p : 0.0f;
        for (int64_t i = 0; has_value && mirrored && i < count; i += lanes)
          store(block.p + i, weighted(load(block.p + i), i));
        coefficients(op, scratch.terms, scratch.lines + below, count,
                     [&](int64_t unit, int64_t lane, auto c) {
                       store(scratch.c + unit * op.line + here + lane, c);
                       store(block.x + unit * block_rows + lane, c * c);
                     });
        if (has_tangent)
          coefficients(op, scratch.terms, scratch.v_lines + below, count,
                       [&](int64_t unit, int64_t lane, auto dc) {
                         const auto c = load(dc, scratch.c + unit * op.line + here + lane);
                         store(scratch.dc + unit * op.line + here + lane, dc);
                         store(block.v + unit * block_rows + lane, weighted(c * dc * 2.0f, lane));
                       });
        value_sweep<has_tangent>(gates, block);
        if (has_tangent) {
          prox_sweep<true>(gates, block);
          tangent_sweep<false>(gates, block);
        }
        adjoint_sweep<has_tangent, has_value>(gates, block);
        if (io.partial) parameter_gradient<has_tangent, has_value>(gates, block, io.partial);
        // for every coefficient of the tile: its place in a row and in a block
        const auto for_each_vector = [&](auto body) {
          for (int64_t unit = 0; unit < op.units; ++unit)
            for (int64_t lane = 0; lane < count; lane += lanes)
              body(unit * op.line + here + lane, unit * block_rows + lane, lane);
        };
        if (has_tangent) {
          start_heads(gates, block, nullptr);
          collect(gates, block, block.e);
          for_each_vector([&](int64_t i, int64_t j, int64_t lane) {
            const Vec g = weighted(2.0f * load(block.result + j), lane);
            store(scratch.e + j, load(scratch.c + i) * g);
            store(scratch.dc + i, load(scratch.dc + i) * g);
          });
        }
        if (has_value)
          start_heads(gates, block, block.p);
        else
          for (int64_t i = 0; i < op.units * block_rows; i += lanes) store(block.result + i, Vec{});
        collect(gates, block, block.delta);
        for_each_vector([&](int64_t i, int64_t j, int64_t) {
          const Vec delta = 2.0f * load(scratch.c + i) * load(block.result + j);
          store(scratch.c + i, has_tangent ? delta + load(scratch.dc + i) : delta);
        });
        if (io.partial)
          filter_gradient(op, scratch.patches, {scratch.c + here, op.line, scratch.lines + below},
                          {has_tangent ? scratch.e : nullptr, block_rows, scratch.v_lines + below}, count,
                          io.partial + io.filters_at);
      },
      [&](int64_t row) {
        add_adjoint(op, scratch.terms, scratch.c, io.sum + row * op.channels * op.sum_line);
      });
}

template <bool mirrored>
void second_rows_of(
    const Frame& op, const FrameScratch& scratch, const FrameSecond& io, int64_t begin, int64_t end) {
  if (io.v && io.p) return second_rows<true, true, mirrored>(op, scratch, io, begin, end);
  if (io.v) return second_rows<true, false, mirrored>(op, scratch, io, begin, end);
  if (io.p) return second_rows<false, true, mirrored>(op, scratch, io, begin, end);
}

void frame_second(
    const Frame& op, const FrameScratch& scratch, const FrameSecond& io, int64_t begin, int64_t end) {
  return op.mirror.rows ? second_rows_of<true>(op, scratch, io, begin, end)
                        : second_rows_of<false>(op, scratch, io, begin, end);
}

}  // namespace
}  // namespace lpn
