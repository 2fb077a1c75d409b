// 3 x 3 correlations with padding 1 and stride 1 or 2 by minimal filtering, 4 x 4 outputs at a time.
//
//   W z     planes = B^T d B per tile;   products = planes U^T (a matrix product per plane);   u = A^T
//   products A W^T e   products = A e A^T;          planes = products U;                                  a
//   += B planes B^T dW      U' = products^T planes summed over the tiles; dW = G^T U' G
//
// with U = G W G^T. The transposed map is the exact transpose of the forward one, term by term and with the
// same rounded U, so the Hessian stays symmetric to rounding. Stride 1 takes 36 products for 16 outputs of 9
// taps: a quarter of the multiplications. Stride 2 splits z into even and odd rows and columns:
//
//   u_i = g_1 z_{2i} + (g_0 z_{2i-1} + g_2 z_{2i+1})     an even phase of one tap, an odd phase of two: 4 + 5
//   products
//
// and in two dimensions (4 + 5)^2 = 81 products for 144. All tensors are channels-last; a plane is a matrix
// [tiles, channels]. Pixels outside are read as zero and not written. Channels are a multiple of 16. Tiles
// are counted through all images; those of a group go through together (csrc/cpu/winograd.cpp).

#pragma once

#include "../kernels.h"
#include "vector.h"
#include "winograd_matrices.h"

namespace lpn {
namespace {

constexpr int tile = 4;  // outputs per side

// One direction of one phase. Input k of tile t lies at pixel  stride (4 t + k) + offset.
struct FullAxis {
  static constexpr int taps = 3, inputs = 6, points = 6, offset = -1, first_tap = 0, tap_step = 1;
  static constexpr float a(int i, int j) { return full_outputs[i][j]; }
  static constexpr float b(int i, int j) { return full_inputs[i][j]; }
  static constexpr float g(int i, int j) { return full_weights[i][j]; }
};

struct OddAxis {
  static constexpr int taps = 2, inputs = 5, points = 5, offset = -1, first_tap = 0, tap_step = 2;
  static constexpr float a(int i, int j) { return odd_outputs[i][j]; }
  static constexpr float b(int i, int j) { return odd_inputs[i][j]; }
  static constexpr float g(int i, int j) { return odd_weights[i][j]; }
};

struct EvenAxis {
  static constexpr int taps = 1, inputs = 4, points = 4, offset = 0, first_tap = 1, tap_step = 1;
  static constexpr float a(int i, int j) { return i == j; }
  static constexpr float b(int i, int j) { return i == j; }
  static constexpr float g(int, int) { return 1.0f; }
};

// The matrices of an axis as types, so that their zeros and ones are known where loops are unrolled.
template <class Axis>
struct A {  // A^T
  static constexpr int rows = tile, columns = Axis::points;
  static constexpr float at(int i, int j) { return Axis::a(i, j); }
};
template <class Axis>
struct B {  // B^T
  static constexpr int rows = Axis::points, columns = Axis::inputs;
  static constexpr float at(int i, int j) { return Axis::b(i, j); }
};
template <class Axis>
struct G {
  static constexpr int rows = Axis::points, columns = Axis::taps;
  static constexpr float at(int i, int j) { return Axis::g(i, j); }
};
template <class M>
struct Transposed {
  static constexpr int rows = M::columns, columns = M::rows;
  static constexpr float at(int i, int j) { return M::at(j, i); }
};

// to[i] = sum_j M_ij from[j]
template <class M>
inline void apply(const Vec* from, Vec* to, int to_step) {
#pragma GCC unroll 8
  for (int i = 0; i < M::rows; ++i) {
    Vec sum = {};
#pragma GCC unroll 8
    for (int j = 0; j < M::columns; ++j)
      if (M::at(i, j) != 0.0f) sum += M::at(i, j) * from[j];
    to[i * to_step] = sum;
  }
}

// Row from Column^T, [Row::rows, Column::rows] from [Row::columns, Column::columns]: an element is read as
// from(i, j) when its column's turn comes, and handed to to(i, j, value) at once, since there are more
// elements than registers.
template <class Row, class Column, class From, class To>
inline void sandwich(From from, To to) {
  Vec half[Row::rows * Column::columns];
#pragma GCC unroll 8
  for (int j = 0; j < Column::columns; ++j) {
    Vec column[Row::columns];
#pragma GCC unroll 8
    for (int i = 0; i < Row::columns; ++i) column[i] = from(i, j);
    apply<Row>(column, half + j, Column::columns);
  }
#pragma GCC unroll 8
  for (int i = 0; i < Row::rows; ++i) {
    Vec row[Column::rows];
    apply<Column>(half + i * Column::columns, row, 1);
#pragma GCC unroll 8
    for (int j = 0; j < Column::rows; ++j) to(i, j, row[j]);
  }
}

// body(row axis, column axis, first plane of the phase)
template <class Body>
inline void for_each_phase(int64_t stride, Body body) {
  if (stride == 1) return body(FullAxis{}, FullAxis{}, 0);
  body(OddAxis{}, OddAxis{}, 0);
  body(OddAxis{}, EvenAxis{}, 25);
  body(EvenAxis{}, OddAxis{}, 45);
  body(EvenAxis{}, EvenAxis{}, 65);
}

struct TilePlace {
  int64_t image, row, column;
};

inline TilePlace place_of(const Winograd& op, int64_t in_group) {
  const int64_t index = op.first + in_group;
  const int64_t in_image = index % (op.tile_rows * op.tile_columns);
  return {index / (op.tile_rows * op.tile_columns), in_image / op.tile_columns, in_image % op.tile_columns};
}

// Where the pixels of a tile lie, decided once for all channels; op.outside for those beyond the border.
template <int rows, int columns>
struct Pixels {
  float* at[rows][columns];
};

template <int rows, int columns>
inline Pixels<rows, columns> pixels_of(const Winograd& op,
                                       int64_t image,
                                       int64_t first_row,
                                       int64_t first_column,
                                       int64_t step,
                                       int64_t height,
                                       int64_t width) {
  Pixels<rows, columns> pixels;
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j) {
      const int64_t row = first_row + step * i, column = first_column + step * j;
      const bool inside = row >= 0 && row < height && column >= 0 && column < width;
      pixels.at[i][j] =
          inside ? op.pixels + ((image * height + row) * width + column) * op.channels : op.outside;
    }
  return pixels;
}

template <class Row, class Column>
inline auto inputs_of(const Winograd& op, TilePlace at) {
  return pixels_of<Row::inputs, Column::inputs>(op, at.image, op.stride * tile * at.row + Row::offset,
                                                op.stride * tile * at.column + Column::offset, op.stride,
                                                op.height, op.width);
}

inline auto outputs_of(const Winograd& op, TilePlace at) {
  return pixels_of<tile, tile>(op, at.image, tile * at.row, tile * at.column, 1, op.out_height, op.out_width);
}

// planes = B^T d B, tiles begin <= index < end
void winograd_inputs(const Winograd& op, int64_t begin, int64_t end) {
  for (int64_t index = begin; index < end; ++index) {
    const TilePlace at = place_of(op, index);
    for_each_phase(op.stride, [&](auto row, auto column, int first) {
      using Row = decltype(row);
      using Column = decltype(column);
      const auto inputs = inputs_of<Row, Column>(op, at);
      for (int64_t channel = 0; channel < op.channels; channel += lanes) {
        float* to = op.planes + first * op.plane + index * op.channels + channel;
        sandwich<B<Row>, B<Column>>(
            [&](int i, int j) { return load(inputs.at[i][j] + channel); },
            [&](int i, int j, Vec value) { store(to + (i * Column::points + j) * op.plane, value); });
      }
    });
  }
}

// u = A^T products A, summed over the phases; tiles begin <= index < end
void winograd_outputs(const Winograd& op, int64_t begin, int64_t end) {
  for (int64_t index = begin; index < end; ++index) {
    const auto outputs = outputs_of(op, place_of(op, index));
    for (int64_t channel = 0; channel < op.channels; channel += lanes) {
      for_each_phase(op.stride, [&](auto row, auto column, int first) {
        using Row = decltype(row);
        using Column = decltype(column);
        const float* from = op.planes + first * op.plane + index * op.channels + channel;
        sandwich<A<Row>, A<Column>>(
            [&](int i, int j) { return load(from + (i * Column::points + j) * op.plane); },
            [&](int i, int j, Vec value) {
              float* to = outputs.at[i][j] + channel;
              store(to, first ? load(to) + value : value);
            });
      });
    }
  }
}

// products = A e A^T; tiles begin <= index < end
void winograd_outputs_adjoint(const Winograd& op, int64_t begin, int64_t end) {
  for (int64_t index = begin; index < end; ++index) {
    const auto outputs = outputs_of(op, place_of(op, index));
    for (int64_t channel = 0; channel < op.channels; channel += lanes)
      for_each_phase(op.stride, [&](auto row, auto column, int first) {
        using Row = decltype(row);
        using Column = decltype(column);
        float* to = op.planes + first * op.plane + index * op.channels + channel;
        sandwich<Transposed<A<Row>>, Transposed<A<Column>>>(
            [&](int i, int j) { return load(outputs.at[i][j] + channel); },
            [&](int i, int j, Vec value) { store(to + (i * Column::points + j) * op.plane, value); });
      });
  }
}

// pixels += B planes B^T for the tiles begin <= index < end of the group, all of one row of tiles.
// Neighbouring tiles of a phase overlap: rows of tiles that touch must not run at the same time.
void winograd_inputs_adjoint(const Winograd& op, int64_t begin, int64_t end) {
  for (int64_t index = begin; index < end; ++index) {
    const TilePlace at = place_of(op, index);
    for_each_phase(op.stride, [&](auto row, auto column, int first) {
      using Row = decltype(row);
      using Column = decltype(column);
      const auto inputs = inputs_of<Row, Column>(op, at);
      for (int64_t channel = 0; channel < op.channels; channel += lanes) {
        const float* from = op.planes + first * op.plane + index * op.channels + channel;
        sandwich<Transposed<B<Row>>, Transposed<B<Column>>>(
            [&](int i, int j) { return load(from + (i * Column::points + j) * op.plane); },
            [&](int i, int j, Vec value) {
              float* to = inputs.at[i][j] + channel;
              store(to, load(to) + value);
            });
      }
    });
  }
}

// body(first plane of the phase, U of `lanes` filters), taps: [9][lanes]. Not inlined: both packs get the
// very same roundings.
template <class Row, class Column>
[[gnu::noinline]] void filter_points(const float (&taps)[9][lanes], Vec* points) {
  sandwich<G<Row>, G<Column>>(
      [&](int i, int j) {
        return load(
            taps[3 * (Row::first_tap + i * Row::tap_step) + Column::first_tap + j * Column::tap_step]);
      },
      [&](int i, int j, Vec value) { points[i * Column::points + j] = value; });
}

// U = G W G^T in the packs that are asked for, for the units 16 begin <= h < 16 end: once with channels along
// the lanes, once with units.
void winograd_weights(const WinogradWeights& op, int64_t begin, int64_t end) {
  const int64_t block = column_multiple;
  const auto panels = [](int64_t columns) { return (columns + panel_width - 1) / panel_width; };
  const auto pack = [&](const float* from, int64_t lane_step, float* to, int64_t plane) {
    float taps[9][lanes];
    for (int lane = 0; lane < lanes; ++lane)
      for (int t = 0; t < 9; ++t) taps[t][lane] = from[lane * lane_step + t];
    for_each_phase(op.stride, [&](auto row, auto column, int first) {
      using Row = decltype(row);
      using Column = decltype(column);
      Vec points[Row::points * Column::points];
      filter_points<Row, Column>(taps, points);
      for (int p = 0; p < Row::points * Column::points; ++p) store(to + (first + p) * plane, points[p]);
    });
  };
  const int64_t forward_plane = panels(op.units) * op.channels * panel_width;
  const int64_t adjoint_plane = panels(op.channels) * op.units * panel_width;
  for (int64_t h = begin * block; op.forward_panels && h < end * block; h += lanes)
    for (int64_t c = 0; c < op.channels; ++c)
      pack(op.core + (h * op.channels + c) * 9, op.channels * 9,
           op.forward_panels + (h / panel_width * op.channels + c) * panel_width + h % panel_width,
           forward_plane);
  for (int64_t h = begin * block; op.adjoint_panels && h < end * block; ++h)
    for (int64_t c = 0; c < op.channels; c += lanes)
      pack(op.core + (h * op.channels + c) * 9, 9,
           op.adjoint_panels + (c / panel_width * op.units + h) * panel_width + c % panel_width,
           adjoint_plane);
}

// dW = G^T U' G for output channels begin <= h < end
void winograd_weights_adjoint(const WinogradGradient& op, int64_t begin, int64_t end) {
  const int64_t plane = op.units * op.channels;
  for (int64_t h = begin; h < end; ++h)
    for (int64_t c = 0; c < op.channels; c += lanes) {
      float taps[9][lanes];
      for_each_phase(op.stride, [&](auto row, auto column, int first) {
        using Row = decltype(row);
        using Column = decltype(column);
        const float* from = op.planes + first * plane + h * op.channels + c;
        sandwich<Transposed<G<Row>>, Transposed<G<Column>>>(
            [&](int i, int j) { return load(from + (i * Column::points + j) * plane); },
            [&](int i, int j, Vec value) {
              store(taps[3 * (Row::first_tap + i * Row::tap_step) + Column::first_tap + j * Column::tap_step],
                    value);
            });
      });
      float* to = op.core + (h * op.channels + c) * 9;
      for (int lane = 0; lane < lanes; ++lane)
        for (int t = 0; t < 9; ++t) to[lane * 9 + t] = taps[t][lane];
    }
}

}  // namespace
}  // namespace lpn
