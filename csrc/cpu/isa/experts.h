// Experts of single pixels that compete in contexts, in two passes: their soft maxima in every context, and
// the way down from the slopes that the contexts give them. Averages over neighbourhoods lie between the two.
//
//   up      c = K x,   z = c^2,   u = W z + b,   powers = exp(u - max u),   L = V powers
//           dc = K v,  dz = 2 c dc,  du = W dz - mean,   dl = V (powers du) / L
//   down    e = powers V^T (lambda / L),              below = W^T e + w h,        f = K^T 2 c below
//           delta = powers V^T ((mu - lambda dl) / L) + e du,
//           H v + p f = K^T 2 (c (W^T delta + p w h) + dc below)
//
// with w the weights of mirrored positions; lpn_fast/ops/backends/contexts.py has the rest. The largest u of
// a position and the mean of du, which all contexts share, go into psi apart. Per position (units channels
// kernel^2 + experts units + experts contexts) 2 multiply-adds, 350,000 for 385 filters of 9 x 9, 320 experts
// and 64 contexts, where c and powers are kept, and half as many again where they are computed twice.

#pragma once

#include "../experts_kernels.h"
#include "competing.h"
#include "frame_maps.h"
#include "frame_value.h"
#include "mlp_gradient.h"

namespace lpn {
namespace {

// exp(u) of shares that count; denormal numbers would cost a hundred times as much.
constexpr float smallest_exponent = -60.0f;

inline ExpertTile tile_at(float* memory, int64_t units, int64_t experts) {
  float* powers = memory + units * block_rows;
  float* dc = powers + experts * block_rows;
  return {memory, powers, dc, dc + units * block_rows};
}

// powers in the place of u, their largest, and of du what is not its mean; `count` lanes.
template <bool has_tangent>
inline void competing_powers(const ExpertScratch& scratch,
                             const ExpertTile& tile,
                             int64_t experts,
                             int64_t count) {
  const SoftplusRates rates(1.0f);
  for_each_group(count, [&](int64_t lane, auto like) {
    float* first = tile.powers + lane;
    auto largest = load(like, first);
    for (int64_t i = block_rows; i < experts * block_rows; i += block_rows)
      largest = map(largest, load(like, first + i), [](Vec a, Vec b) { return larger_of(a, b); });
    auto sum = like, mean = like;
    for (int64_t i = 0; i < experts * block_rows; i += block_rows) {
      const auto below =
          map(load(like, first + i) - largest, [](Vec x) { return larger_of(smallest_exponent, x); });
      const auto power = power_of_two(below * -rates.exponent);
      store(first + i, power);
      sum = sum + power;
      if (has_tangent) mean = multiply_add(power, load(like, tile.du + lane + i), mean);
    }
    store(scratch.shared + lane, largest);
    if (!has_tangent) return;
    mean = map(mean, sum, [](Vec a, Vec b) { return a / b; });
    store(scratch.shared + block_rows + lane, mean);
    for (int64_t i = 0; i < experts * block_rows; i += block_rows)
      store(tile.du + lane + i, load(like, tile.du + lane + i) - mean);
  });
}

// c, powers, and along v dc, du of a tile; z_1 and its tangent too.
template <bool has_tangent>
inline void tile_upwards(const Frame& op,
                         const Experts& network,
                         const ExpertScratch& scratch,
                         const ExpertTile& tile,
                         int64_t below,  // of the tile in `lines`
                         int64_t count) {
  const MlpBlock& block = *scratch.block;
  const MlpStage& stage = network.mlp->stages[0];
  const auto forward = [&](const float* operand, float* to, const float* bias) {
    scratch.terms[0] = {stage.skip, op.units, 1, operand, block_rows, op.units};
    product(scratch.terms, 1, stage.width, count, [=](int64_t unit, int64_t lane, auto sum) {
      store(to + unit * block_rows + lane, bias ? sum + bias[unit] : sum);
    });
  };
  coefficients(op, scratch.terms, scratch.lines + below, count, [&](int64_t unit, int64_t lane, auto c) {
    store(tile.c + unit * block_rows + lane, c);
    store(block.x + unit * block_rows + lane, c * c);
  });
  forward(block.x, tile.powers, network.bias);
  if (has_tangent) {
    coefficients(op, scratch.terms, scratch.v_lines + below, count, [&](int64_t unit, int64_t lane, auto dc) {
      const int64_t i = unit * block_rows + lane;
      store(tile.dc + i, dc);
      store(block.v + i, load(dc, tile.c + i) * dc * 2.0f);
    });
    forward(block.v, tile.du, nullptr);
  }
  competing_powers<has_tangent>(scratch, tile, stage.width, count);
}

// to = powers du
inline void weigh(const ExpertTile& tile, int64_t experts, int64_t count, float* to) {
  for (int64_t i = 0; i < experts * block_rows; i += block_rows)
    for (int64_t lane = 0; lane < count; lane += lanes)
      store(to + i + lane, load(tile.powers + i + lane) * load(tile.du + i + lane));
}

// log x of a positive normal number.
inline Vec logarithm(Vec x, const SoftplusRates& rates) {
  const IntVec bits = reinterpret_cast<IntVec>(x);
  const Vec octaves = __builtin_convertvector((bits >> 23) - 127, Vec);
  const Vec rest = reinterpret_cast<Vec>((bits & 0x7fffff) | 0x3f800000) - 1.0f;
  const Vec log = log1p_of_product(rest, 1.0f, rates) + octaves * 0.693147181f;
  return x == x ? log : x;
}

// Maps of contexts at the first `pixels` of a tile, and back with zeros behind.
inline void put(const Experts& network, const float* tile, int64_t pixels, float* to) {
  for (int64_t context = 0; context < network.contexts; ++context)
    for (int64_t i = 0; i < pixels; ++i)
      to[context * network.height * network.width + i] = tile[context * block_rows + i];
}

inline void fetch(const Experts& network, const float* from, int64_t pixels, int64_t count, float* tile) {
  for (int64_t context = 0; context < network.contexts; ++context)
    for (int64_t i = 0; i < count; ++i)
      tile[context * block_rows + i] = i < pixels ? from[context * network.height * network.width + i] : 0.0f;
}

template <bool has_tangent, bool mirrored>
void experts_up_rows(const Frame& op,
                     const Experts& network,
                     const ExpertScratch& scratch,
                     const ExpertsUp& io,
                     int64_t begin,
                     int64_t end) {
  const MlpBlock& block = *scratch.block;
  const int64_t experts = network.mlp->stages[0].width;
  const SoftplusRates rates(1.0f);
  constexpr float one = 1.0f;
  const FrameValue<mirrored> none(*network.mlp, rates, nullptr);
  FrameValue<mirrored> largest = none, mean = none, heads = none;
  continue_rows(op, io.x, scratch.lines, begin, end);
  if (has_tangent) continue_rows(op, io.v, scratch.v_lines, begin, end);
  int64_t index = begin * network.tiles;
  for_each_tile(
      op, end - begin,
      [&](int64_t row, int64_t at, int64_t count, int64_t pixels) {
        const ExpertTile tile =
            io.kept ? tile_at(io.kept + index * network.tile_floats, op.units, experts) : scratch.tile;
        ++index;
        tile_upwards<has_tangent>(op, network, scratch, tile, row * op.channels * op.line + at, count);
        const int64_t place = (begin + row) * network.width + at;
        constexpr float tiny = smallest_normal;  // an expert without odds in any context is alone
        scratch.terms[0] = {network.odds, experts, 1, tile.powers, block_rows, experts};
        product(scratch.terms, 1, network.contexts, count, [&](int64_t context, int64_t lane, auto sum) {
          store(scratch.sums + context * block_rows + lane,
                map(sum, [](Vec x) { return larger_of(tiny, x); }));
        });
        put(network, scratch.sums, pixels, io.sums + place);
        for (int64_t i = 0; i < network.contexts * block_rows; i += lanes)
          store(scratch.logs + i, logarithm(load(scratch.sums + i), rates));
        put(network, scratch.logs, pixels, io.logs + place);
        const RowWeights weights = weights_of(op, begin + row, at);
        largest.start(count, pixels, weights);
        largest.add(&one, scratch.shared, 1);
        heads.start(count, pixels, weights);
        heads.add(network.mlp->linear, block.x, op.units);
        if (!has_tangent) return;
        weigh(tile, experts, count, block.s);
        scratch.terms[0].operand = block.s;
        product(scratch.terms, 1, network.contexts, count, [&](int64_t context, int64_t lane, auto sum) {
          const int64_t i = context * block_rows + lane;
          store(scratch.changes + i,
                map(sum, load(sum, scratch.sums + i), [](Vec a, Vec b) { return a / b; }));
        });
        put(network, scratch.changes, pixels, io.changes + place);
        mean.start(count, pixels, weights);
        mean.add(&one, scratch.shared + block_rows, 1);
      },
      [](int64_t) {});
  io.totals[0] = largest.total();
  io.totals[1] = mean.total();
  io.totals[2] = heads.total();
}

// What is kept of a tile, or that once more.
template <bool has_tangent>
inline ExpertTile found_before(const Frame& op,
                               const Experts& network,
                               const ExpertScratch& scratch,
                               float* kept,
                               int64_t below,
                               int64_t count) {
  if (kept) return tile_at(kept, op.units, network.mlp->stages[0].width);
  tile_upwards<has_tangent>(op, network, scratch, scratch.tile, below, count);
  return scratch.tile;
}

// to = powers V^T by, + more
template <class More>
inline void through_odds(const Experts& network,
                         Term* terms,
                         const ExpertTile& tile,
                         const float* by,  // [contexts, block_rows]
                         int64_t count,
                         float* to,  // [experts, block_rows]
                         More more) {
  const int64_t experts = network.mlp->stages[0].width;
  terms[0] = {network.odds, 1, experts, by, block_rows, network.contexts};
  product(terms, 1, experts, count, [&](int64_t unit, int64_t lane, auto sum) {
    const int64_t i = unit * block_rows + lane;
    store(to + i, more(i, load(sum, tile.powers + i) * sum));
  });
}

// finish(unit, lane, sums) for W^T e
template <class Finish>
inline void to_energies(
    const Frame& op, const Experts& network, Term* terms, const float* e, int64_t count, Finish finish) {
  const MlpStage& stage = network.mlp->stages[0];
  terms[0] = {stage.skip, 1, op.units, e, block_rows, stage.width};
  product(terms, 1, op.units, count, finish);
}

template <bool mirrored>
void experts_prox_rows(const Frame& op,
                       const Experts& network,
                       const ExpertScratch& scratch,
                       const ExpertsDown& io,
                       int64_t begin,
                       int64_t end) {
  const MlpBlock& block = *scratch.block;
  const float* heads = network.mlp->linear;
  float* first = scratch.row + (mirrored ? op.kernel - 1 : 0);
  if (!io.kept) continue_rows(op, io.x, scratch.lines, begin, end);
  clear_sums(op, io.sum, end - begin);
  int64_t index = begin * network.tiles;
  for_each_tile(
      op, end - begin,
      [&](int64_t row, int64_t at, int64_t count, int64_t pixels) {
        const RowWeights weights = weights_of(op, begin + row, at);
        float* kept = io.kept ? io.kept + index++ * network.tile_floats : nullptr;
        const ExpertTile tile =
            found_before<false>(op, network, scratch, kept, row * op.channels * op.line + at, count);
        fetch(network, io.slopes + (begin + row) * network.width + at, pixels, count, scratch.sums);
        through_odds(network, scratch.terms, tile, scratch.sums, count, block.e,
                     [](int64_t, auto e) { return e; });
        to_energies(op, network, scratch.terms, block.e, count, [&](int64_t unit, int64_t lane, auto sum) {
          auto below = sum;
          if (heads) {
            const auto head = map(sum, [&](Vec) { return broadcast(heads[unit]); });
            if constexpr (mirrored)
              below = sum + weights.times(head, lane);
            else
              below = sum + head;
          }
          store(first + unit * op.line + at + lane,
                load(sum, tile.c + unit * block_rows + lane) * (below + below));
        });
      },
      [&](int64_t row) {
        add_adjoint(op, scratch.terms, scratch.row, io.sum + row * op.channels * op.sum_line);
      });
}

// Gradients of odds and of h, from a tile.
template <bool has_tangent, bool has_value>
inline void gradients_above(const Frame& op,
                            const Experts& network,
                            const ExpertScratch& scratch,
                            const ExpertTile& tile,
                            const float* weights,  // [count]
                            int64_t count,
                            const ExpertsDown& io) {
  const MlpBlock& block = *scratch.block;
  const int64_t experts = network.mlp->stages[0].width;
  float* others = scratch.turned + block_rows * network.columns;
  transpose(scratch.changes, block_rows, scratch.turned, network.columns, network.contexts, count);
  scratch.terms[0] = {tile.powers, block_rows, 1, scratch.turned, network.columns, count};
  if (has_tangent) {
    transpose(scratch.sums, block_rows, others, network.columns, network.contexts, count);
    weigh(tile, experts, count, block.s);
    scratch.terms[1] = {block.s, block_rows, 1, others, network.columns, count};
  }
  float* odds = io.partial + io.odds_at;
  product(scratch.terms, has_tangent ? 2 : 1, experts, network.columns,
          [=](int64_t unit, int64_t context, auto sum) {
            float* to = odds + unit * network.columns + context;
            store(to, load(sum, to) + sum);
          });
  for (int64_t unit = 0; network.mlp->linear && unit < op.units; ++unit) {
    Vec sum{};
    for (int64_t lane = 0; lane < count; lane += lanes) {
      const int64_t i = unit * block_rows + lane;
      const Vec weight = load(weights + lane);
      if (has_tangent) sum += weight * load(block.v + i);
      if (has_value) sum += (*io.p * weight) * load(block.x + i);
    }
    add_lanes(io.partial + network.mlp->linear_at + unit * sum_lanes, sum);
  }
}

template <bool has_tangent, bool has_value, bool mirrored>
void experts_second_rows(const Frame& op,
                         const Experts& network,
                         const ExpertScratch& scratch,
                         const ExpertsDown& io,
                         int64_t begin,
                         int64_t end) {
  MlpBlock block = *scratch.block;
  const float* heads = network.mlp->linear;
  const int64_t before = mirrored ? op.kernel - 1 : 0;
  const bool reads_lines = io.partial || !io.kept;
  if (reads_lines) continue_rows(op, io.x, scratch.lines, begin, end);
  if (reads_lines && has_tangent) continue_rows(op, io.v, scratch.v_lines, begin, end);
  clear_sums(op, io.sum, end - begin);
  int64_t index = begin * network.tiles;
  for_each_tile(
      op, end - begin,
      [&](int64_t row, int64_t at, int64_t count, int64_t pixels) {
        const int64_t below = row * op.channels * op.line + at, place = (begin + row) * network.width + at;
        float* kept = io.kept ? io.kept + index++ * network.tile_floats : nullptr;
        const ExpertTile tile = found_before<has_tangent>(op, network, scratch, kept, below, count);
        const RowWeights weights = weights_of(op, begin + row, at);
        for (int64_t lane = 0; lane < count; lane += lanes) {  // of positions, without those behind the last
          const Vec one = first_of(broadcast(1.0f), pixels - lane);
          store(block.p + lane, mirrored ? weights.times(one, lane) : one);
        }
        fetch(network, io.changes + place, pixels, count, scratch.changes);
        if (has_tangent) {
          fetch(network, io.slopes + place, pixels, count, scratch.sums);
          through_odds(network, scratch.terms, tile, scratch.sums, count, block.e,
                       [](int64_t, auto e) { return e; });
          to_energies(op, network, scratch.terms, block.e, count, [&](int64_t unit, int64_t lane, auto sum) {
            const float head = value_or_zero(heads, unit);
            store(block.result + unit * block_rows + lane, sum + load(sum, block.p + lane) * head);
          });
        }
        through_odds(network, scratch.terms, tile, scratch.changes, count, block.delta,
                     [&](int64_t i, auto delta) {
                       if (!has_tangent) return delta;
                       return multiply_add(load(delta, block.e + i), load(delta, tile.du + i), delta);
                     });
        to_energies(op, network, scratch.terms, block.delta, count,
                    [&](int64_t unit, int64_t lane, auto sum) {
                      const int64_t i = unit * block_rows + lane;
                      const auto c = load(sum, tile.c + i);
                      auto under = sum;
                      if (has_value)
                        under = sum + load(sum, block.p + lane) * (*io.p * value_or_zero(heads, unit));
                      auto back = c * under;
                      if (has_tangent) {
                        const auto above = load(sum, block.result + i);
                        back = multiply_add(load(sum, tile.dc + i), above, back);
                        store(scratch.e + i, c * above * 2.0f);
                      }
                      store(scratch.row + unit * op.line + before + at + lane, back * 2.0f);
                    });
        if (!io.partial) return;
        for (int64_t unit = 0; unit < op.units; ++unit)
          for (int64_t lane = 0; lane < count; lane += lanes) {
            const int64_t i = unit * block_rows + lane;
            const Vec c = load(tile.c + i);
            store(block.x + i, c * c);
            if (has_tangent) store(block.v + i, c * load(tile.dc + i) * 2.0f);
          }
        block.row_lanes = count;
        matrix_gradient<has_tangent>(*network.mlp, block, 0, io.partial);
        tail_gradient<has_tangent>(*network.mlp, block, 0, io.partial);
        gradients_above<has_tangent, has_value>(op, network, scratch, tile, block.p, count, io);
        filter_gradient(op, scratch.patches, {scratch.row + before + at, op.line, scratch.lines + below},
                        {has_tangent ? scratch.e : nullptr, block_rows, scratch.v_lines + below}, count,
                        io.partial + io.filters_at);
      },
      [&](int64_t row) {
        add_adjoint(op, scratch.terms, scratch.row, io.sum + row * op.channels * op.sum_line);
      });
}

void experts_up(const Frame& op,
                const Experts& network,
                const ExpertScratch& scratch,
                const ExpertsUp& io,
                int64_t begin,
                int64_t end) {
  if (op.mirror.rows)
    return io.v ? experts_up_rows<true, true>(op, network, scratch, io, begin, end)
                : experts_up_rows<false, true>(op, network, scratch, io, begin, end);
  return io.v ? experts_up_rows<true, false>(op, network, scratch, io, begin, end)
              : experts_up_rows<false, false>(op, network, scratch, io, begin, end);
}

template <bool mirrored>
void experts_down_rows(const Frame& op,
                       const Experts& network,
                       const ExpertScratch& scratch,
                       const ExpertsDown& io,
                       int64_t begin,
                       int64_t end) {
  if (!io.changes) return experts_prox_rows<mirrored>(op, network, scratch, io, begin, end);
  if (io.v && io.p) return experts_second_rows<true, true, mirrored>(op, network, scratch, io, begin, end);
  if (io.v) return experts_second_rows<true, false, mirrored>(op, network, scratch, io, begin, end);
  return experts_second_rows<false, true, mirrored>(op, network, scratch, io, begin, end);
}

void experts_down(const Frame& op,
                  const Experts& network,
                  const ExpertScratch& scratch,
                  const ExpertsDown& io,
                  int64_t begin,
                  int64_t end) {
  return op.mirror.rows ? experts_down_rows<true>(op, network, scratch, io, begin, end)
                        : experts_down_rows<false>(op, network, scratch, io, begin, end);
}

}  // namespace
}  // namespace lpn
