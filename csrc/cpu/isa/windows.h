// What lies between the two passes of experts (isa/experts.h), lpn_fast/ops/backends/contexts.py:
//
//   v = s y + b,   rho = softmax(v),   zeta = log sum exp(v) / s,   dzeta = sum_c rho_c dy_c
//
// Averages over neighbourhoods: correlations with t along the rows and then along the columns of a map, with
// weights of rows and columns before or after (lpn_fast/algebra/windows.py).
//
// Row by row: what the window sees of a column, all rows with one factor each, goes into a line with zeros on
// both sides, and the line through the window. 2 side multiply-adds a value, each with a load.

#pragma once

#include "../experts_kernels.h"
#include "activation.h"

namespace lpn {
namespace {

// body(lane, count, like) over groups of four vectors, then single ones, of which the last may be cut.
template <class Body>
inline void for_each_part(int64_t width, Body body) {
  constexpr int vectors = 4;
  int64_t lane = 0;
  for (; lane + vectors * lanes <= width; lane += vectors * lanes)
    body(lane, int64_t{lanes}, Group<vectors>{});
  for (; lane < width; lane += lanes) body(lane, width - lane < lanes ? width - lane : lanes, Group<1>{});
}

template <int count>
inline Group<count> load_first(const Group<count>& like, const float* from, int64_t lanes_left) {
  if constexpr (count > 1) return load(like, from);
  Group<count> result;
  result.part[0] = load(from, lanes_left);
  return result;
}

// Rows begin <= r < end. Values depend on nothing else that is computed, as those of the library's
// exponentials may.
void compete(const Competition& op, int64_t begin, int64_t end) {
  const SoftplusRates rates(1.0f);
  const int64_t size = op.height * op.width, steps = op.contexts * size;
  for (int64_t row = begin; row < end; ++row)
    for (int64_t lane = 0; lane < op.width; lane += lanes) {
      const int64_t count = op.width - lane < lanes ? op.width - lane : lanes, at = row * op.width + lane;
      const auto v = [&](int64_t i, int64_t context) {
        return load(op.y + i + at, count) * op.sharpness + op.bias[context];
      };
      Vec largest = v(0, 0);
      for (int64_t i = size, context = 1; i < steps; i += size, ++context)
        largest = larger_of(largest, v(i, context));
      const auto power = [&](int64_t i, int64_t context) {
        return power_of_two(Group<1>{{(v(i, context) - largest) * -rates.exponent}}).part[0];
      };
      Vec total{}, mean{};
      for (int64_t i = 0, context = 0; i < steps; i += size, ++context) {
        const Vec share = power(i, context);
        total += share;
        if (op.dy) mean += share * load(op.dy + i + at, count);
      }
      const Vec inverse = 1.0f / total, dzeta = mean * inverse;
      if (op.zeta)
        store(op.zeta + at, (largest + log1p_of_product(total - 1.0f, 1.0f, rates)) / op.sharpness, count);
      if (op.dy) store(op.dzeta + at, dzeta, count);
      const Vec weight = load(op.columns + lane, count) * op.rows[row] * inverse;
      for (int64_t i = 0, context = 0; i < steps; i += size, ++context) {
        const Vec weighted = power(i, context) * weight;
        Vec change{};
        if (op.p) change = *op.p * weighted;
        if (op.dy) change += op.sharpness * weighted * (load(op.dy + i + at, count) - dzeta);
        store(op.slopes + i + at, weighted, count);
        if (op.changes) store(op.changes + i + at, change, count);
      }
    }
}

void average_map(const Average& op, const float* from, float* to, float* line) {
  const int64_t reach = op.side / 2;
  for (int64_t i = 0; i < op.width + 2 * reach + column_multiple; ++i) line[i] = 0.0f;
  for (int64_t y = 0; y < op.height; ++y) {
    const int64_t first = y < reach ? 0 : y - reach;
    const int64_t last = y + reach < op.height ? y + reach : op.height - 1;
    for_each_part(op.width, [&](int64_t lane, int64_t count, auto like) {
      auto sum = like;
      for (int64_t row = first; row <= last; ++row) {
        const float tap = op.taps[row - y + reach] * (op.rows_before ? op.rows_before[row] : 1.0f);
        const auto values = load_first(like, from + row * op.width + lane, count);
        sum = map(sum, values, [=](Vec s, Vec v) { return s + v * tap; });
      }
      if (op.columns_before) sum = sum * load_first(like, op.columns_before + lane, count);
      if constexpr (sizeof(like) > sizeof(Vec))
        store(line + reach + lane, sum);
      else
        store(line + reach + lane, sum.part[0], count);
    });
    for_each_part(op.width, [&](int64_t lane, int64_t count, auto like) {
      auto sum = like;
      for (int64_t t = 0; t < op.side; ++t) {
        const float tap = op.taps[t];
        sum = map(sum, load(like, line + lane + t), [=](Vec s, Vec v) { return s + v * tap; });
      }
      if (op.columns_after) sum = sum * load_first(like, op.columns_after + lane, count) * op.rows_after[y];
      if constexpr (sizeof(like) > sizeof(Vec))
        store(to + y * op.width + lane, sum);
      else
        store(to + y * op.width + lane, sum.part[0], count);
    });
  }
}

}  // namespace
}  // namespace lpn
