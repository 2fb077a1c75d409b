// Matrix products whose right factor lies in panels of 32 columns: the products of convolutions.
//
//   out[row, column] (+)= sum over k of  a[row, k] * panels[column / 32][k][column % 32]
//
// A tile is panel_rows x 2 vectors. With AVX-512 these are 12 rows and a whole panel: 24 accumulators, and
// per k 12 broadcasts and 2 loads for 24 multiply-adds, 14 loads in the time of 24. A panel of 256 k is 32
// KB, so it stays in L1 while the row tiles pass; the rows of `a` (12 KB) stream.

#pragma once

#include "../kernels.h"
#include "vector.h"

namespace lpn {
namespace {

#if defined(__AVX512F__)
constexpr int panel_rows = 12;
#else
constexpr int panel_rows = 6;  // 12 accumulators + 2 operands + 1 broadcast = 15 of 16 registers
#endif

// The sums of one tile leave the registers once, for a loop that need not be unrolled.
struct TileSums {
  Vec at[panel_rows][2];
};

template <int rows, int vectors>
inline void tile_sums(const PanelProduct& op, int64_t row, int64_t column, TileSums& sums) {
  const float* segment = op.a + row * op.row_stride;
  const float* b = op.panels + column / panel_width * op.panel_step + column % panel_width;
  const int64_t depth = op.depth, depth_stride = op.depth_stride, depth_step = op.depth_step,
                row_stride = op.row_stride;
  Vec sum[rows][vectors] = {};
  for (int64_t s = 0; s < op.segments; ++s) {
    const float* a = segment;
    for (int64_t k = 0; k < depth; ++k) {
      Vec values[vectors];
#pragma GCC unroll 2
      for (int j = 0; j < vectors; ++j) values[j] = load(b + j * lanes);
#pragma GCC unroll 12
      for (int i = 0; i < rows; ++i) {
        const Vec factor = broadcast(a[i * row_stride]);
#pragma GCC unroll 2
        for (int j = 0; j < vectors; ++j) sum[i][j] += factor * values[j];
      }
      a += depth_stride;
      b += depth_step;
    }
    segment += op.segment_step;
  }
#pragma GCC unroll 12
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) sums.at[i][j] = sum[i][j];
}

template <int vectors, int rows>
inline void tile_sums_of(int64_t size, const PanelProduct& op, int64_t row, int64_t column, TileSums& sums) {
  if constexpr (rows > 0) {
    if (size == rows) return tile_sums<rows, vectors>(op, row, column, sums);
    tile_sums_of<vectors, rows - 1>(size, op, row, column, sums);
  }
}

template <int count>
struct Count {
  static constexpr int value = count;
};

// finish(row, rows, column, sums, Count of vectors) for the rows begin <= r < end, in tiles of nearly equal
// size: a tile of two rows would wait for its multiply-adds.
template <int vectors, class Finish>
inline void product_columns(
    const PanelProduct& op, int64_t begin, int64_t end, int64_t column, Finish finish) {
  TileSums sums;
  int64_t groups = (end - begin + panel_rows - 1) / panel_rows;
  for (int64_t row = begin; groups > 0; --groups) {
    const int64_t size = (end - row + groups - 1) / groups;
    tile_sums_of<vectors, panel_rows>(size, op, row, column, sums);
    finish(row, size, column, sums, Count<vectors>{});
    row += size;
  }
}

template <class Finish>
inline void product_with_panels(const PanelProduct& op, int64_t begin, int64_t end, Finish finish) {
  int64_t column = 0;
  for (; column + 2 * lanes <= op.columns; column += 2 * lanes)
    product_columns<2>(op, begin, end, column, finish);
  for (; column < op.columns; column += lanes) product_columns<1>(op, begin, end, column, finish);
}

// Rows begin <= r < end of one product.
void panel_product(const PanelProduct& op, int64_t begin, int64_t end) {
  product_with_panels(op, begin, end,
                      [&](int64_t row, int64_t rows, int64_t column, const TileSums& sums, auto vectors) {
                        for (int64_t i = 0; i < rows; ++i)
                          for (int j = 0; j < vectors.value; ++j) {
                            float* to = op.out + (row + i) * op.out_stride + column + j * lanes;
                            store(to, op.add ? load(to) + sums.at[i][j] : sums.at[i][j]);
                          }
                      });
}

// Rows of the right factor that are packed together: a panel of them is 32 KB.
constexpr int64_t packed_depth = 256;

// out += a^T b for the columns begin <= r < end of a. Rows of b are powers of two apart and would all fall on
// a few sets of the cache, so a panel of them is copied together first.
void gradient_product(const GradientProduct& op, int64_t begin, int64_t end) {
  alignas(64) float panel[packed_depth * panel_width];
  for (int64_t first = 0; first < op.depth; first += packed_depth) {
    const int64_t depth = op.depth - first < packed_depth ? op.depth - first : packed_depth;
    for (int64_t column = 0; column < op.columns; column += panel_width) {
      const int64_t width = op.columns - column < panel_width ? op.columns - column : panel_width;
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t j = 0; j < width; j += lanes)
          store(panel + k * panel_width + j, load(op.b + (first + k) * op.b_stride + column + j));
      PanelProduct product{};
      product.a = op.a + first * op.a_stride;
      product.row_stride = 1;
      product.depth_stride = op.a_stride;
      product.segments = 1;
      product.panels = panel;
      product.depth_step = panel_width;
      product.depth = depth;
      product.columns = width;
      product.out = op.out + column;
      product.out_stride = op.columns;
      product.add = true;
      panel_product(product, begin, end);
    }
  }
}

}  // namespace
}  // namespace lpn
