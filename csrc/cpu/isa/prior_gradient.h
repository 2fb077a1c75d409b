// Parameter gradients of  <v, grad R(x)>, or of p R(x),  of an explicit prior (prior.h), by rows of patches.
//
//   t = w U (c dc),   g' = (far r2^3 - slope r1^3) / 2,   r2 = 0 up to u = far^2 here but for w g
//   <v, grad R>:  d slope = sum of r1 t,   d near = -slope/2 sum of r1^3 t,   d far = -sum of r2 t
//                 dU = sum of w g (x) c dc + g' t (x) c^2
//                 dA = sum of (dc U^T w g + 2 c U^T g' t) (x) patch(E x) + (c U^T w g) (x) patch(E v)
//   p R:          d slope = sum of w q,   q = sqrt(near + u) - sqrt(near),   d far = sum of w (far - u r2), u
//   > far^2
//                 d near = -slope/2 sum of w q r1 / sqrt(near)
//                 dU = sum of w g/2 (x) c^2,   dA = sum of (2 c U^T w g/2) (x) patch(E x);   w includes p
//
// As there c and all that follows is recomputed and only images and sums are in memory. Per position atoms
// (4 taps + 6 groups) multiply-adds, 28,420 for 49 atoms of 7 x 7 and 64 groups: 2.6 gradients of R, of which
// the outer products, whose depth is the positions of a tile, are four in ten. Atoms in fours have 2.5 taps
// instead of 4. 10 KB of sums a chunk stay in L2 beside a tile's 90 KB, so that products decide.

#pragma once

#include "prior.h"
#include "transpose.h"

namespace lpn {
namespace {

// Sums over the lanes of a tile are kept lane by lane.
template <int count>
inline void add_lanes(float* to, const Group<count>& a) {  // to: [sum_lanes]
  Vec sum = a.part[0];
  for (int i = 1; i < count; ++i) sum += a.part[i];
  add_lanes(to, sum);
}

// w g and g' t of a tile, or w g/2, and the gradients of the numbers of a group.
template <bool has_tangent>
inline void gates_and_gradients(const PriorFrame& op,
                                const PriorScratch& scratch,
                                const GroupPotentials& pot,
                                const PriorPartial& partial,
                                int64_t count,
                                const float* weights,  // [count]
                                float row_weight) {
  if constexpr (has_tangent) {
    to_groups(op, scratch, pot, scratch.cross, count, [&](int64_t group, int64_t lane, auto sum) {
      store(scratch.third + group * block_rows + lane, sum * (load(sum, weights + lane) * row_weight));
    });
  }
  to_groups(op, scratch, pot, scratch.energy, count, [&](int64_t group, int64_t lane, auto u) {
    const float slope = pot.slope[group], far = pot.far[group], bend = far * far;
    const float root = __builtin_sqrtf(pot.near[group]);
    const auto w = load(u, weights + lane) * row_weight;
    const auto first = u + pot.near[group];
    const auto near = map(first, reciprocal_root);
    const auto distant = map(u, [bend](Vec x) { return reciprocal_root(larger_of(bend, x)); });
    const auto past = map(distant, u, [bend](Vec r, Vec x) { return x > bend ? r : Vec{}; });
    const int64_t at = group * block_rows + lane, sums = group * sum_lanes;
    const auto gates = (near * slope - distant * far) * w;
    if constexpr (has_tangent) {
      const auto t = load(u, scratch.third + at), cubes = near * near * near * t;
      store(scratch.gates + at, gates);
      store(scratch.third + at, past * past * past * t * (0.5f * far) - cubes * (0.5f * slope));
      add_lanes(partial.slope + sums, near * t);
      add_lanes(partial.near + sums, cubes * (-0.5f * slope));
      add_lanes(partial.far + sums, past * t * -1.0f);
    } else {
      // the difference of the roots as a quotient: for small u they have most of their digits in common
      const auto rise = map(u, first * near + root, [](Vec x, Vec roots) { return x / roots; }) * w;
      store(scratch.gates + at, gates * 0.5f);
      add_lanes(partial.slope + sums, rise);
      add_lanes(partial.near + sums, rise * near * (-0.5f * slope / root));
      add_lanes(partial.far + sums,
                map(u, past, [far, bend](Vec x, Vec r) { return x > bend ? far - x * r : Vec{}; }) * w);
    }
  });
}

// dU of a tile. Groups along lanes: of those there are mostly whole vectors, of atoms hardly ever.
template <bool has_tangent>
inline void energies_gradient(const PriorFrame& op,
                              const PriorScratch& scratch,
                              int64_t groups,
                              const PriorPartial& partial,
                              int64_t count) {
  const int64_t columns = partial.group_columns;
  float* third = scratch.columns + block_rows * columns;
  transpose(scratch.gates, block_rows, scratch.columns, columns, groups, count);
  Term terms[2] = {
      {has_tangent ? scratch.cross : scratch.energy, block_rows, 1, scratch.columns, columns, count}};
  if constexpr (has_tangent) {
    transpose(scratch.third, block_rows, third, columns, groups, count);
    terms[1] = {scratch.energy, block_rows, 1, third, columns, count};
  }
  product(terms, has_tangent ? 2 : 1, op.units, columns, [&](int64_t atom, int64_t first, auto part) {
    float* to = partial.energies + atom * columns + first;
    store(to, load(part, to) + part);
  });
}

template <bool has_tangent>
void gradient_rows_of(const PriorFrame& op,
                      const PriorScratch& scratch,
                      const PriorGradientRows& io,
                      int64_t begin,
                      int64_t end) {
  const PriorFrame& frame = op;
  const GroupPotentials& pot = io.potentials;
  continue_rows(op, io.x, scratch.lines, begin, end);
  if constexpr (has_tangent) continue_rows(op, io.v, scratch.v_lines, begin, end);
  for_each_tile(
      frame.first_column, frame.column_count, end - begin,
      [&](int64_t row, int64_t at, int64_t count, int64_t) {
        const int64_t below = row * frame.channels * frame.line;
        const float row_weight =
            has_tangent ? op.mirror.row_weights[begin + row] : op.mirror.row_weights[begin + row] * io.p;
        float* c = scratch.c;
        float* dc = scratch.dc;
        prior_coefficients(frame, scratch, scratch.lines + below, scratch.folded, at, count, c,
                           [&](int64_t unit, int64_t lane, auto sum) {
                             store(c + unit * block_rows + lane, sum);
                             store(scratch.energy + unit * block_rows + lane, sum * sum);
                           });
        if constexpr (has_tangent)
          prior_coefficients(frame, scratch, scratch.v_lines + below, scratch.v_folded, at, count, dc,
                             [&](int64_t unit, int64_t lane, auto sum) {
                               store(dc + unit * block_rows + lane, sum);
                               store(scratch.cross + unit * block_rows + lane,
                                     load(sum, c + unit * block_rows + lane) * sum);
                             });
        gates_and_gradients<has_tangent>(op, scratch, pot, io.partial, count, op.mirror.column_weights + at,
                                         row_weight);
        energies_gradient<has_tangent>(op, scratch, pot.groups, io.partial, count);
        if constexpr (has_tangent) {
          to_atoms(frame, scratch, pot, scratch.third, count, [&](int64_t unit, int64_t lane, auto sum) {
            store(scratch.energy + unit * block_rows + lane,
                  load(sum, c + unit * block_rows + lane) * sum * 2.0f);
          });
        }
        to_atoms(frame, scratch, pot, scratch.gates, count, [&](int64_t unit, int64_t lane, auto sum) {
          const int64_t i = unit * block_rows + lane;
          const auto own = load(sum, c + i) * sum;
          if constexpr (has_tangent) {
            store(c + i, own);
            store(dc + i, load(sum, dc + i) * sum + load(sum, scratch.energy + unit * block_rows + lane));
          } else {
            store(c + i, own + own);
          }
        });
        const FilterTerm of_x{has_tangent ? dc : c, block_rows, scratch.lines + below + at};
        const FilterTerm of_v{has_tangent ? c : nullptr, block_rows, scratch.v_lines + below + at};
        filter_gradient(frame, scratch.patches, of_x, of_v, count, io.partial.atoms);
      },
      [](int64_t) {});
}

void prior_gradient_rows(const PriorFrame& op,
                         const PriorScratch& scratch,
                         const PriorGradientRows& io,
                         int64_t begin,
                         int64_t end) {
  return io.v ? gradient_rows_of<true>(op, scratch, io, begin, end)
              : gradient_rows_of<false>(op, scratch, io, begin, end);
}

}  // namespace
}  // namespace lpn
