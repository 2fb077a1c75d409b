// Averages over neighbourhoods: correlations with t along the rows and then along the columns of a map, with
// weights of rows and columns before or after (lpn_fast/algebra/windows.py).
//
// Row by row: what the window sees of a column, all rows with one factor each, goes into a line with zeros on
// both sides, and the line through the window. 2 side multiply-adds a value, each with a load: 11 ms for 64
// maps of 489 x 329 and a side of 25, where the library's depthwise convolutions take some 300.

#pragma once

#include "../experts_kernels.h"
#include "group.h"

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
