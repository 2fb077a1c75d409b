// The first stage of a frame network: coefficients of a row of an image, and the way back.
//
// Pixels lie along vector lanes and weights are broadcast from where they lie in P, so that the correlations
// are products of product.h whose operands are read shifted:
//
//   c[j]      = sum over (channel, i) of  K[j][channel][i][t] x[channel][row + i][. + t]      product over t
//   row i of K^T e, of a channel     = sum over t of  K[j][channel][i][t] e[j][. - t]         product over j

#pragma once

#include "../frame_kernels.h"
#include "product.h"

namespace lpn {
namespace {

// Tiles of the way back: a row of 7 x 7 filters at once. In two parts of 4 and 3 units the shifted reads,
// most of which touch two cache lines, would take longer than the multiply-adds.
#if defined(__AVX512F__)
constexpr int adjoint_units = 7, adjoint_vectors = 3;
#else
constexpr int adjoint_units = tile_units, adjoint_vectors = row_vectors;
#endif

// As continue_rows, of mirrored images whose pixels are channels.
inline void continue_spaced_rows(const Frame& op,
                                 const float* x,  // [channels / spacing^2, height, width]
                                 float* lines,    // [end - begin + kernel - 1, channels, line]
                                 int64_t begin,
                                 int64_t end) {
  const int64_t spacing = op.spacing, width = op.width + 2 * (spacing * op.kernel - 1);
  for (int64_t row = begin; row < end + op.kernel - 1; ++row)
    for (int64_t channel = 0; channel < op.channels; ++channel, lines += op.line) {
      const int64_t column = channel % spacing, place = channel / spacing;
      const int64_t y = op.mirror.rows[spacing * row + place % spacing];
      const float* from = x + (place / spacing * op.height + y) * op.width;
      for (int64_t i = 0; i < op.line; ++i) {
        const int64_t at = spacing * i + column;
        lines[i] = at < width ? from[op.mirror.columns[at]] : 0.0f;
      }
    }
}

// Rows `begin` to `end` + kernel - 2 of x with kernel - 1 pixels more on every side: zeros, or mirrored.
inline void continue_rows(const Frame& op,
                          const float* x,  // [channels, height, width]
                          float* lines,    // [end - begin + kernel - 1, channels, line]
                          int64_t begin,
                          int64_t end) {
  const int64_t margin = op.kernel - 1, width = op.width;
  if (const Mirror& mirror = op.mirror; mirror.rows) {
    if (op.spacing > 1) return continue_spaced_rows(op, x, lines, begin, end);
    for (int64_t row = begin; row < end + margin; ++row)
      for (int64_t channel = 0; channel < op.channels; ++channel, lines += op.line) {
        const float* from = x + (channel * op.height + mirror.rows[row]) * width;
        for (int64_t i = 0; i < margin; ++i) lines[i] = from[mirror.columns[i]];
        for (int64_t i = 0; i < width; ++i) lines[margin + i] = from[i];
        for (int64_t i = margin + width; i < width + 2 * margin; ++i) lines[i] = from[mirror.columns[i]];
        for (int64_t i = width + 2 * margin; i < op.line; ++i) lines[i] = 0.0f;
      }
    return;
  }
  for (int64_t row = begin; row < end + margin; ++row) {
    const int64_t from = row - margin;
    for (int64_t channel = 0; channel < op.channels; ++channel, lines += op.line) {
      for (int64_t i = 0; i < op.line; ++i) lines[i] = 0.0f;
      if (from < 0 || from >= op.height) continue;
      const float* line = x + (channel * op.height + from) * width;
      for (int64_t i = 0; i < width; ++i) lines[margin + i] = line[i];
    }
  }
}

// finish(unit, lane, c) for the coefficients of a tile of `count` pixels; lines: of its first pixel.
template <class Finish>
inline void coefficients(const Frame& op, Term* terms, const float* lines, int64_t count, Finish finish) {
  const int64_t rows = op.channels * op.kernel;
  for (int64_t channel = 0, term = 0; channel < op.channels; ++channel)
    for (int64_t i = 0; i < op.kernel; ++i, ++term)
      terms[term] = {op.filters + term * op.kernel,
                     rows * op.kernel,
                     1,
                     lines + (i * op.channels + channel) * op.line,
                     1,
                     op.kernel};
  product(terms, rows, op.units, count, finish);
}

// sums += K^T e of one row.
inline void add_adjoint(const Frame& op,
                        Term* terms,
                        const float* e,  // [units, line]
                        float* sums) {   // [kernel, channels, sum_line]
  for (int64_t t = 0; t < op.kernel; ++t)
    terms[t] = {op.filters + t,        op.kernel, op.channels * op.kernel * op.kernel,
                e + op.kernel - 1 - t, op.line,   op.units};
  product<adjoint_vectors, adjoint_units>(
      terms, op.kernel, op.channels * op.kernel, op.sum_line, [&](int64_t unit, int64_t lane, auto sum) {
        const int64_t channel = unit / op.kernel, i = unit % op.kernel;
        float* to = sums + (i * op.channels + channel) * op.sum_line + lane;
        store(to, load(sum, to) + sum);
      });
}

// Rows of kernel^2 channels numbers, one a pixel; lines: of the first. A vector may reach into the next row,
// which is written later, or what lies behind the last.
inline void gather_patches(const Frame& op,
                           const float* lines,
                           int64_t count,
                           float* patches) {  // [count, columns], a vector more
  for (int64_t pixel = 0; pixel < count; ++pixel, patches += op.columns)
    for (int64_t channel = 0, at = 0; channel < op.channels; ++channel)
      for (int64_t i = 0; i < op.kernel; ++i, at += op.kernel)
        for (int64_t t = 0; t < op.kernel; t += lanes)
          store(patches + at + t, load(lines + (i * op.channels + channel) * op.line + pixel + t));
}

// What the filters' gradient gets from a tile: delta (x) patches.
struct FilterTerm {
  const float* delta;  // [units, stride], of the first pixel, or nullptr
  int64_t stride;
  const float* lines;  // of the first pixel
};

// sum += a.delta (x) patches of a.lines + b.delta (x) patches of b.lines over a tile
inline void filter_gradient(const Frame& op,
                            float* patches,  // [2, block_rows + 1, columns]
                            const FilterTerm& a,
                            const FilterTerm& b,
                            int64_t count,
                            float* sum) {  // [units, columns]
  float* others = patches + (block_rows + 1) * op.columns;
  gather_patches(op, a.lines, count, patches);
  Term terms[2] = {{a.delta, a.stride, 1, patches, op.columns, count}};
  if (b.delta) {
    gather_patches(op, b.lines, count, others);
    terms[1] = {b.delta, b.stride, 1, others, op.columns, count};
  }
  product(terms, b.delta ? 2 : 1, op.units, op.columns, [=](int64_t unit, int64_t first, auto part) {
    float* to = sum + unit * op.columns + first;
    store(to, load(part, to) + part);
  });
}

// body(row, at, count, pixels) for tiles of `count` lanes from coefficient `at` of a row on, of which
// `pixels` are of the `width` ones from the first on; after(row) behind each row. Tiles are of nearly equal
// size: one of one vector would wait for itself.
template <class Body, class After>
inline void for_each_tile(int64_t first, int64_t width, int64_t rows, Body body, After after) {
  const int64_t vectors = (width + lanes - 1) / lanes;
  const int64_t most = block_rows / lanes, tiles = (vectors + most - 1) / most;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t at = i * vectors / tiles * lanes, count = (i + 1) * vectors / tiles * lanes - at;
      body(row, first + at, count, width - at < count ? width - at : count);
    }
    after(row);
  }
}

template <class Body, class After>
inline void for_each_tile(const Frame& op, int64_t rows, Body body, After after) {
  for_each_tile(0, op.across, rows, body, after);
}

// How often the pixels of a tile count: weights of its columns, 1, 1/2 or 0, times that of its row.
struct RowWeights {
  const float* columns;  // [count]
  float row;

  Vec times(Vec t, int64_t lane) const { return t * (load(columns + lane) * row); }
  template <int count>
  Group<count> times(const Group<count>& t, int64_t lane) const {
    return t * (load(t, columns + lane) * row);
  }
};

inline RowWeights weights_of(const Frame& op, int64_t row, int64_t at) {
  return op.mirror.rows ? RowWeights{op.mirror.column_weights + at, op.mirror.row_weights[row]}
                        : RowWeights{};
}

inline void clear_sums(const Frame& op, float* sum, int64_t rows) {
  for (int64_t i = 0; i < (rows + op.kernel - 1) * op.channels * op.sum_line; ++i) sum[i] = 0.0f;
}

// W_l of the gates, and how many units it reads: the first stage reads z_1.
inline const float* gate_weights(const Mlp& gates, int64_t l) {
  return l ? gates.stages[l].core : gates.stages[l].skip;
}
inline int64_t units_below(const Mlp& gates, int64_t l) { return l ? gates.stages[l - 1].width : gates.dim; }

}  // namespace
}  // namespace lpn
