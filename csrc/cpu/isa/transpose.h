// Rows along lanes and back:  to[j, i] = from[i, j].
//
// The network's tensors keep a sample's values together; the sweeps want the same unit of many samples
// together.

#pragma once

#include <stdint.h>

namespace lpn {
namespace {

typedef float Quad __attribute__((vector_size(16)));
typedef float LooseQuad __attribute__((vector_size(16), aligned(4), may_alias));

// 4 x 4: two rounds of interleaving, 8 shuffles for 16 elements.
inline void transpose_quad(const float* from,    // [4, from_stride]
                           int64_t from_stride,  //
                           float* to,            // [4, to_stride]
                           int64_t to_stride) {
  const Quad a = *reinterpret_cast<const LooseQuad*>(from);
  const Quad b = *reinterpret_cast<const LooseQuad*>(from + from_stride);
  const Quad c = *reinterpret_cast<const LooseQuad*>(from + 2 * from_stride);
  const Quad d = *reinterpret_cast<const LooseQuad*>(from + 3 * from_stride);
  const Quad ac_low = {a[0], c[0], a[1], c[1]};
  const Quad ac_high = {a[2], c[2], a[3], c[3]};
  const Quad bd_low = {b[0], d[0], b[1], d[1]};
  const Quad bd_high = {b[2], d[2], b[3], d[3]};
  const Quad row_0 = {ac_low[0], bd_low[0], ac_low[1], bd_low[1]};
  const Quad row_1 = {ac_low[2], bd_low[2], ac_low[3], bd_low[3]};
  const Quad row_2 = {ac_high[0], bd_high[0], ac_high[1], bd_high[1]};
  const Quad row_3 = {ac_high[2], bd_high[2], ac_high[3], bd_high[3]};
  *reinterpret_cast<LooseQuad*>(to) = row_0;
  *reinterpret_cast<LooseQuad*>(to + to_stride) = row_1;
  *reinterpret_cast<LooseQuad*>(to + 2 * to_stride) = row_2;
  *reinterpret_cast<LooseQuad*>(to + 3 * to_stride) = row_3;
}

void transpose(const float* from,    // [rows, from_stride], the first `columns` of each row count
               int64_t from_stride,  //
               float* to,            // [columns, to_stride]
               int64_t to_stride,    //
               int64_t rows,
               int64_t columns) {
  const int64_t whole_rows = rows - rows % 4;
  const int64_t whole_columns = columns - columns % 4;
  for (int64_t j = 0; j < whole_columns; j += 4)
    for (int64_t i = 0; i < whole_rows; i += 4)
      transpose_quad(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
  for (int64_t j = 0; j < columns; ++j)
    for (int64_t i = j < whole_columns ? whole_rows : 0; i < rows; ++i)
      to[j * to_stride + i] = from[i * from_stride + j];
}

}  // namespace
}  // namespace lpn
