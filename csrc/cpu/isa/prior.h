// R, grad R and Hessian products of an explicit prior, some rows of patches of an image at a time.
//
//   c = A patch(E x),   u = U c^2,   r1 = (near + u)^(-1/2),   m = max(u, far^2),   r2 = m^(-1/2)
//   R       = sum of w (slope (near + u) r1 - far m r2 + (m - u + far^2) / 2)
//   g       = slope r1 - far r2,           grad = E^T sum of w A^T (c U^T g)
//   g3      = slope r1^3 - far r2^3 where u > far^2,       dc = A patch(E v)
//   product = E^T sum of w A^T (dc U^T g - c U^T (g3 U (c dc)))
//
// As in frame.h only images touch memory. E x is made row by row where it is read; sums are those of E x,
// which the caller folds. Per position 2 atoms (atoms + groups) multiply-adds for the gradient, 11,074 for 49
// atoms and 64 groups, and two reciprocal square roots for each group; 3 atoms^2 + 4 atoms groups for the
// product.

#pragma once

#include "../prior_kernels.h"
#include "frame_maps.h"

namespace lpn {
namespace {

// x^(-1/2) of positive x: the processor's estimate and a step of Newton's, to a unit or two of the last
// place. A square root and a division take ten times as long.
inline Vec reciprocal_root(Vec x) {
#if defined(__AVX512F__)
  const Vec r =
      _mm512_maskz_rsqrt14_ps(first_lanes(lanes), x);  // without a mask GCC warns of what it merges with
#elif defined(__AVX2__)
  const Vec r = _mm256_rsqrt_ps(x);
#else
  Vec root;
  for (int i = 0; i < lanes; ++i) root[i] = __builtin_sqrtf(x[i]);
  return 1.0f / root;
#endif
#if defined(__AVX2__)
  return r * (1.5f - 0.5f * x * r * r);
#endif
}

// Rows `begin` to `end` + kernel - 2 of E x.
inline void continued_rows(const PatchFrame& op,
                           const float* x,  // [channels, height, width]
                           float* lines,    // [end - begin + kernel - 1, channels, line]
                           int64_t begin,
                           int64_t end) {
  const Frame& frame = op.frame;
  const int64_t margin = frame.kernel - 1, width = frame.width;
  for (int64_t row = begin; row < end + margin; ++row)
    for (int64_t channel = 0; channel < frame.channels; ++channel, lines += frame.line) {
      const float* from = x + (channel * frame.height + op.rows[row]) * width;
      for (int64_t i = 0; i < margin; ++i) lines[i] = from[op.columns[i]];
      for (int64_t i = 0; i < width; ++i) lines[margin + i] = from[i];
      for (int64_t i = margin + width; i < width + 2 * margin; ++i) lines[i] = from[op.columns[i]];
      for (int64_t i = width + 2 * margin; i < frame.line; ++i) lines[i] = 0.0f;
    }
}

// Gates of a tile, their third-order parts of Hessian products, and the tile's part of R.
template <bool with_value, bool has_tangent>
inline void prior_gates(const PatchFrame& op,
                        const PriorScratch& scratch,
                        const GroupPotentials& pot,
                        int64_t count,
                        const float* weights,  // [count]
                        float row_weight,
                        double* value) {
  Term term{pot.energies, op.frame.units, 1, scratch.energy, block_rows, op.frame.units};
  Vec totals[block_rows / lanes] = {};
  product(&term, 1, pot.groups, count, [&](int64_t group, int64_t lane, auto u) {
    const float slope = pot.slope[group], far = pot.far[group], bend = far * far;
    const auto first = u + pot.near[group];
    const auto second = map(u, [bend](Vec x) { return larger_of(bend, x); });
    const auto near = map(first, reciprocal_root), distant = map(second, reciprocal_root);
    store(scratch.gates + group * block_rows + lane, near * slope - distant * far);
    if constexpr (has_tangent)
      store(scratch.third + group * block_rows + lane,
            near * near * near * slope - map(distant * distant * distant * far, u,
                                             [bend](Vec third, Vec x) { return x > bend ? third : Vec{}; }));
    if constexpr (with_value) {
      const auto part = first * near * slope - second * distant * far + (second - u + bend) * 0.5f;
      for (unsigned i = 0; i < sizeof(part) / sizeof(Vec); ++i) totals[lane / lanes + i] += part.part[i];
    }
  });
  if constexpr (with_value) {
    Vec sum{};
    for (int64_t lane = 0; lane < count; lane += lanes) sum += totals[lane / lanes] * load(weights + lane);
    *value += static_cast<double>(row_weight) * static_cast<double>(sum_of_lanes(sum));
  }
}

template <bool with_value, bool has_tangent>
void prior_rows_of(
    const PatchFrame& op, const PriorScratch& scratch, const PriorRows& io, int64_t begin, int64_t end) {
  const Frame& frame = op.frame;
  const GroupPotentials& pot = io.potentials;
  const int64_t margin = frame.kernel - 1;
  double value = 0.0;
  continued_rows(op, io.x, scratch.lines, begin, end);
  if constexpr (has_tangent) continued_rows(op, io.v, scratch.v_lines, begin, end);
  clear_sums(frame, io.sum, end - begin);
  float* result = has_tangent ? scratch.dc : scratch.c;
  for_each_tile(
      frame, end - begin,
      [&](int64_t row, int64_t at, int64_t count, int64_t) {
        const int64_t below = row * frame.channels * frame.line + at;
        const float* weights = op.column_weights + at;
        const float row_weight = op.row_weights[begin + row];
        float* c = scratch.c + margin + at;
        float* dc = scratch.dc + margin + at;
        coefficients(frame, scratch.terms, scratch.lines + below, count,
                     [&](int64_t unit, int64_t lane, auto sum) {
                       store(c + unit * frame.line + lane, sum);
                       store(scratch.energy + unit * block_rows + lane, sum * sum);
                     });
        if constexpr (has_tangent)
          coefficients(frame, scratch.terms, scratch.v_lines + below, count,
                       [&](int64_t unit, int64_t lane, auto sum) {
                         const auto own = load(sum, c + unit * frame.line + lane);
                         store(dc + unit * frame.line + lane, sum);
                         store(scratch.cross + unit * block_rows + lane, own * sum);
                       });
        prior_gates<with_value, has_tangent>(op, scratch, pot, count, weights, row_weight, &value);
        const Term back{pot.energies, 1, frame.units, scratch.gates, block_rows, pot.groups};
        product(&back, 1, frame.units, count, [&](int64_t unit, int64_t lane, auto sum) {
          float* to = (has_tangent ? dc : c) + unit * frame.line + lane;
          store(to, load(sum, to) * sum * (load(sum, weights + lane) * row_weight));
        });
        if constexpr (has_tangent) {
          const Term up{pot.energies, frame.units, 1, scratch.cross, block_rows, frame.units};
          product(&up, 1, pot.groups, count, [&](int64_t group, int64_t lane, auto sum) {
            float* third = scratch.third + group * block_rows + lane;
            store(third, load(sum, third) * sum);
          });
          const Term down{pot.energies, 1, frame.units, scratch.third, block_rows, pot.groups};
          product(&down, 1, frame.units, count, [&](int64_t unit, int64_t lane, auto sum) {
            float* to = dc + unit * frame.line + lane;
            const auto own = load(sum, c + unit * frame.line + lane);
            store(to, load(sum, to) - own * sum * (load(sum, weights + lane) * row_weight));
          });
        }
      },
      [&](int64_t row) {
        add_adjoint(frame, scratch.terms, result, io.sum + row * frame.channels * frame.sum_line);
      });
  if constexpr (with_value) *io.value = value;
}

void prior_rows(
    const PatchFrame& op, const PriorScratch& scratch, const PriorRows& io, int64_t begin, int64_t end) {
  if (io.v) return prior_rows_of<false, true>(op, scratch, io, begin, end);
  return io.value ? prior_rows_of<true, false>(op, scratch, io, begin, end)
                  : prior_rows_of<false, false>(op, scratch, io, begin, end);
}

}  // namespace
}  // namespace lpn
