// Correlations with filters that come in fours, a seed and its mirror images, by its even and odd parts.
//
//   c_0 = ss + sd + ds + dd    the seed       ss = sum over (i, t) of W_ss[i][t] (E_i,t + E_i,t' + E_i',t +
//   E_i',t') c_1 = ss - sd + ds - dd    its columns mirrored           and so on, d with a minus sign; i' =
//   kernel - 1 - i c_2 = ss + sd - ds - dd    its rows c_3 = ss - sd - ds + dd    both
//
// Four filters share the products with their parts, whose taps are those of one filter all together. Rows are
// folded once per row of positions, columns once per tile; the way back is the transpose of every step, so
// that per position and way atoms kernel^2 channels / 4 multiply-adds are left, about 2 kernel^2 channels
// additions and as many vectors stored. Columns are gathered there, of operands read shifted: added up where
// they belong, they would wait for the stores of their neighbours.

#pragma once

#include "../prior_kernels.h"
#include "frame_maps.h"

namespace lpn {
namespace {

// Lines, or taps, of the even and of the odd part along an axis. The middle one of an odd kernel is even.
inline int64_t parity_size(const Frame& op, int64_t odd) { return odd ? op.kernel / 2 : (op.kernel + 1) / 2; }

// body(lane, group) for groups of one or two vectors.
template <class Body>
inline void for_each_pair(int64_t count, Body body) {
  int64_t lane = 0;
  for (; lane + 2 * lanes <= count; lane += 2 * lanes) body(lane, Group<2>{});
  if (lane < count) body(lane, Group<1>{});
}

// Sums of the rows i and kernel - 1 - i of a row of patches, then their differences.
inline void fold_rows(const Frame& op,
                      const float* lines,  // [kernel, channels, line]
                      float* folded) {     // as lines
  const int64_t odd = parity_size(op, 1), row = op.channels * op.line;
  float* differences = folded + parity_size(op, 0) * row;
  for (int64_t i = 0; i < odd; ++i)
    for (int64_t x = i * row; x < (i + 1) * row; x += lanes) {
      const Vec upper = load(lines + x), lower = load(lines + (op.kernel - 1 - 2 * i) * row + x);
      store(folded + x, upper + lower);
      store(differences + x, upper - lower);
    }
  for (int64_t x = odd * row; x < op.kernel % 2 * row + odd * row; x += lanes)
    store(folded + x, load(lines + x));
}

// The same along columns, of a tile.
inline void fold_columns(const Frame& op,
                         const float* folded,  // [rows, line], of the tile's first position
                         int64_t rows,
                         int64_t count,
                         float* operands) {  // [kernel, rows, block_rows]
  const int64_t odd = parity_size(op, 1), step = rows * block_rows;
  float* differences = operands + parity_size(op, 0) * step;
  for (int64_t row = 0; row < rows; ++row, folded += op.line)
    for_each_pair(count, [&](int64_t lane, auto group) {
      const float* from = folded + lane;
      const int64_t at = row * block_rows + lane;
      for (int64_t t = 0; t < odd; ++t) {
        const auto left = load(group, from + t), right = load(group, from + op.kernel - 1 - t);
        store(operands + t * step + at, left + right);
        store(differences + t * step + at, left - right);
      }
      if (op.kernel % 2) store(operands + odd * step + at, load(group, from + odd));
    });
}

// Filters of parts, and parts of filters: finish(unit, lane, sum) with what every four have become.
template <class Finish>
inline void mix_fours(const float* c,
                      int64_t units,
                      int64_t count,
                      Finish finish) {  // c: [units, block_rows]
  for (int64_t unit = 0; unit < units; unit += 4)
    for_each_pair(count, [&](int64_t lane, auto group) {
      const float* from = c + unit * block_rows + lane;
      const auto ss = load(group, from), sd = load(group, from + block_rows);
      const auto ds = load(group, from + 2 * block_rows), dd = load(group, from + 3 * block_rows);
      const auto s_sum = ss + sd, s_difference = ss - sd, d_sum = ds + dd, d_difference = ds - dd;
      finish(unit, lane, s_sum + d_sum);
      finish(unit + 1, lane, s_difference + d_difference);
      finish(unit + 2, lane, s_sum - d_sum);
      finish(unit + 3, lane, s_difference - d_difference);
    });
}

// finish(unit, lane, c) for the coefficients of a tile; folded: of its first position.
template <class Finish>
inline void folded_coefficients(const PriorFrame& op,
                                const PriorScratch& scratch,
                                const float* folded,
                                int64_t count,
                                float* c,  // scratch, [units, block_rows]
                                Finish finish) {
  for (int64_t down = 0; down < 2; ++down) {
    const int64_t rows = op.channels * parity_size(op, down);
    fold_columns(op, folded, rows, count, scratch.operands);
    folded += rows * op.line;
    const float* operand = scratch.operands;
    for (int64_t across = 0; across < 2; ++across) {
      const int64_t part = 2 * down + across, taps = parity_size(op, across) * rows;
      const Term term{op.parts[part], taps, 1, operand, block_rows, taps};
      product(&term, 1, op.units / 4, count, [&](int64_t seed, int64_t lane, auto sum) {
        store(c + (4 * seed + part) * block_rows + lane, sum);
      });
      operand += taps * block_rows;
    }
  }
  mix_fours(c, op.units, count, finish);
}

// Sums over t of the taps of a row, each t columns further right.
template <int vectors>
inline Group<vectors> gather_taps(const PriorFrame& op, const float* spread, int64_t step) {
  const int64_t odd = parity_size(op, 1);
  const float* others = spread + parity_size(op, 0) * step - (op.kernel - 1);
  Group<vectors> sum{};
  for (int64_t t = 0; t < odd; ++t) {
    sum = sum + load(sum, spread + t * step - t);
    sum = sum + load(sum, others + t * step + t);
  }
  return op.kernel % 2 ? sum + load(sum, spread + odd * step - odd) : sum;
}

// sums += A^T e of a tile, of the columns that no later tile adds to. Tiles come in order.
inline void add_folded_adjoint(const PriorFrame& op,
                               const PriorScratch& scratch,
                               float* e,  // [units, block_rows], lost
                               int64_t at,
                               int64_t count,
                               float* sums) {  // [kernel, channels, sum_line]
  const int64_t seeds = op.units / 4, positions = op.first_column + op.column_count;
  mix_fours(e, op.units, count,
            [&](int64_t unit, int64_t lane, auto sum) { store(e + unit * block_rows + lane, sum); });
  float* spread = scratch.spread + op.spread_margin;
  for (int64_t down = 0; down < 2; ++down) {
    const int64_t rows = op.channels * parity_size(op, down), evens = parity_size(op, 0) * rows;
    const Term even{op.parts[2 * down], 1, evens, e + 2 * down * block_rows, 4 * block_rows, seeds};
    product(&even, 1, evens, count,
            [&](int64_t tap, int64_t lane, auto sum) { store(spread + tap * op.spread_line + lane, sum); });
    const int64_t odds = parity_size(op, 1) * rows;
    const Term odd{op.parts[2 * down + 1], 1, odds, e + (2 * down + 1) * block_rows, 4 * block_rows, seeds};
    product(&odd, 1, odds, count, [&](int64_t tap, int64_t lane, auto sum) {
      float* left = spread + tap * op.spread_line + lane;
      const auto own = load(sum, left);
      store(left, own + sum);
      store(left + evens * op.spread_line, own - sum);
    });
    spread += (evens + odds) * op.spread_line;
  }

  const bool last = at + count >= positions;
  const int64_t end = last ? (positions + op.kernel - 1 - at + lanes - 1) / lanes * lanes : count;
  const int64_t even_rows = op.channels * parity_size(op, 0), odd_rows = op.channels * parity_size(op, 1);
  const float* evens = scratch.spread + op.spread_margin;
  const float* odds = evens + op.kernel * even_rows * op.spread_line;
  for (int64_t i = 0; i < even_rows; ++i, evens += op.spread_line, odds += op.spread_line) {
    const int64_t mirrored = (op.kernel - 1 - i / op.channels) * op.channels + i % op.channels;
    float* upper = sums + i * op.sum_line + at;
    float* lower = sums + mirrored * op.sum_line + at;
    for_each_pair(end, [&](int64_t lane, auto group) {
      constexpr int vectors = sizeof(group) / sizeof(Vec);
      const auto even = gather_taps<vectors>(op, evens + lane, even_rows * op.spread_line);
      if (i >= odd_rows) return store(upper + lane, load(group, upper + lane) + even);
      const auto odd = gather_taps<vectors>(op, odds + lane, odd_rows * op.spread_line);
      store(upper + lane, load(group, upper + lane) + (even + odd));
      store(lower + lane, load(group, lower + lane) + (even - odd));
    });
  }
  // The last columns lie before those of the next tile, zeros before those of the next row.
  float* before = scratch.spread;
  for (int64_t tap = 0; tap < op.channels * op.kernel * op.kernel; ++tap, before += op.spread_line)
    for (int64_t x = 0; x < op.spread_margin; x += lanes)
      store(before + x, last ? Vec{} : load(before + count + x));
}

}  // namespace
}  // namespace lpn
