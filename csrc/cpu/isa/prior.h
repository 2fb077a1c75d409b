// R, grad R and Hessian products of an explicit prior, some rows of patches of an image at a time.
//
//   c = A patch(E x),   u = U c^2,   r1 = (near + u)^(-1/2),   m = max(u, far^2),   r2 = m^(-1/2)
//   R       = sum of w (slope (near + u) r1 - far m r2 + (m - u + far^2) / 2)
//   g       = slope r1 - far r2,           grad = E^T sum of w A^T (c U^T g)
//   g3      = slope r1^3 - far r2^3 where u > far^2,       dc = A patch(E v)
//   product = E^T sum of w A^T (dc U^T g - c U^T (g3 U (c dc)))
//
// As in frame.h only images touch memory. E x is made row by row where it is read; sums are those of E x,
// which the caller folds. Per position 2 atoms (taps + groups) multiply-adds for the gradient, taps =
// kernel^2 channels, and two reciprocal square roots for each group; atoms (3 taps + 4 groups) for the
// product. Atoms in fours (prior_fold.h) cost a quarter of their taps: 22,120 for 80 atoms of 13 x 13 and 96
// groups, not 42,400. Groups and atoms that have nothing but zeros of U between them are skipped where they
// lie together (support.cpp): groups that see 8 atoms each count as 8 atoms. If groups are their own mirror
// images, too, only patches with their middle in the image are computed (prior.cpp).

#pragma once

#include "../prior_kernels.h"
#include "prior_fold.h"

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

// finish(unit, lane, c) for the coefficients of a tile from lane `at` of a row on.
template <class Finish>
inline void prior_coefficients(const PriorFrame& op,
                               const PriorScratch& scratch,
                               const float* lines,  // [kernel, channels, line]
                               float* folded,       // as lines: scratch, kept from the row's first tile on
                               int64_t at,
                               int64_t count,
                               float* c,  // scratch, [units, block_rows]
                               Finish finish) {
  if (!op.parts[0]) return coefficients(op, scratch.terms, lines + at, count, finish);
  if (at == op.first_column) fold_rows(op, lines, folded);
  folded_coefficients(op, scratch, folded + at, count, c, finish);
}

// Weights times operand of a tile, where they are not zero. Dense matrices are one block of one run.
template <class Finish>
inline void supported_product(
    const Term& whole, const Support& support, Term* terms, int64_t count, Finish finish) {
  for (const SupportBlock* block = support.blocks; block != support.blocks + support.block_count; ++block) {
    for (int64_t i = 0; i < block->run_count; ++i) {
      const SupportRun run = support.runs[block->run + i];
      terms[i] = whole;
      terms[i].weights += block->unit * whole.unit_stride + run.begin * whole.depth_stride;
      terms[i].operand += run.begin * whole.operand_stride;
      terms[i].depth = run.end - run.begin;
    }
    product(terms, block->run_count, block->units, count,
            [&](int64_t unit, int64_t lane, auto sum) { finish(block->unit + unit, lane, sum); });
  }
}

// finish(group, lane, sum) with U times what atoms have, ...
template <class Finish>
inline void to_groups(const PriorFrame& op,
                      const PriorScratch& scratch,
                      const GroupPotentials& pot,
                      const float* operand,  // [atoms, block_rows]
                      int64_t count,
                      Finish finish) {
  const Term whole{pot.energies, op.units, 1, operand, block_rows, op.units};
  supported_product(whole, pot.rows, scratch.terms, count, finish);
}

// ... and finish(atom, lane, sum) with U^T times what groups have.
template <class Finish>
inline void to_atoms(const PriorFrame& op,
                     const PriorScratch& scratch,
                     const GroupPotentials& pot,
                     const float* operand,  // [groups, block_rows]
                     int64_t count,
                     Finish finish) {
  const Term whole{pot.energies, 1, op.units, operand, block_rows, pot.groups};
  supported_product(whole, pot.columns, scratch.terms, count, finish);
}

// Gates of a tile, their third-order parts of Hessian products, and the tile's part of R.
template <bool with_value, bool has_tangent>
inline void prior_gates(const PriorFrame& op,
                        const PriorScratch& scratch,
                        const GroupPotentials& pot,
                        int64_t count,
                        const float* weights,  // [count]
                        float row_weight,
                        double* value) {
  Vec totals[block_rows / lanes] = {};
  to_groups(op, scratch, pot, scratch.energy, count, [&](int64_t group, int64_t lane, auto u) {
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
    const PriorFrame& op, const PriorScratch& scratch, const PriorRows& io, int64_t begin, int64_t end) {
  const GroupPotentials& pot = io.potentials;
  const bool parts = op.parts[0];
  const int64_t margin = op.kernel - 1, stride = parts ? block_rows : op.line;
  double value = 0.0;
  continue_rows(op, io.x, scratch.lines, begin, end);
  if constexpr (has_tangent) continue_rows(op, io.v, scratch.v_lines, begin, end);
  clear_sums(op, io.sum, end - begin);
  float* result = has_tangent ? scratch.dc : scratch.c;
  for_each_tile(
      op.first_column, op.column_count, end - begin,
      [&](int64_t row, int64_t at, int64_t count, int64_t) {
        const int64_t below = row * op.channels * op.line;
        const float* weights = op.mirror.column_weights + at;
        const float row_weight = op.mirror.row_weights[begin + row];
        float* c = parts ? scratch.c : scratch.c + margin + at;
        float* dc = parts ? scratch.dc : scratch.dc + margin + at;
        prior_coefficients(op, scratch, scratch.lines + below, scratch.folded, at, count, c,
                           [&](int64_t unit, int64_t lane, auto sum) {
                             store(c + unit * stride + lane, sum);
                             store(scratch.energy + unit * block_rows + lane, sum * sum);
                           });
        if constexpr (has_tangent)
          prior_coefficients(op, scratch, scratch.v_lines + below, scratch.v_folded, at, count, dc,
                             [&](int64_t unit, int64_t lane, auto sum) {
                               const auto own = load(sum, c + unit * stride + lane);
                               store(dc + unit * stride + lane, sum);
                               store(scratch.cross + unit * block_rows + lane, own * sum);
                             });
        prior_gates<with_value, has_tangent>(op, scratch, pot, count, weights, row_weight, &value);
        to_atoms(op, scratch, pot, scratch.gates, count, [&](int64_t unit, int64_t lane, auto sum) {
          float* to = (has_tangent ? dc : c) + unit * stride + lane;
          store(to, load(sum, to) * sum * (load(sum, weights + lane) * row_weight));
        });
        if constexpr (has_tangent) {
          to_groups(op, scratch, pot, scratch.cross, count, [&](int64_t group, int64_t lane, auto sum) {
            float* third = scratch.third + group * block_rows + lane;
            store(third, load(sum, third) * sum);
          });
          to_atoms(op, scratch, pot, scratch.third, count, [&](int64_t unit, int64_t lane, auto sum) {
            float* to = dc + unit * stride + lane;
            const auto own = load(sum, c + unit * stride + lane);
            store(to, load(sum, to) - own * sum * (load(sum, weights + lane) * row_weight));
          });
        }
        if (parts)
          add_folded_adjoint(op, scratch, result, at, count, io.sum + row * op.channels * op.sum_line);
      },
      [&](int64_t row) {
        if (!parts) add_adjoint(op, scratch.terms, result, io.sum + row * op.channels * op.sum_line);
      });
  if constexpr (with_value) *io.value = value;
}

void prior_rows(
    const PriorFrame& op, const PriorScratch& scratch, const PriorRows& io, int64_t begin, int64_t end) {
  if (io.v) return prior_rows_of<false, true>(op, scratch, io, begin, end);
  return io.value ? prior_rows_of<true, false>(op, scratch, io, begin, end)
                  : prior_rows_of<false, false>(op, scratch, io, begin, end);
}

}  // namespace
}  // namespace lpn
