// What an instruction set provides for explicit priors (isa/prior.h).
//
// Plain structs and no inline function, as in kernels.h and for its reason.

#pragma once

#include <stdint.h>

#include "frame_kernels.h"

namespace lpn {

// Units of a product with U, or its transpose, that read the same runs of its depth: there is nothing but
// zeros elsewhere.
struct SupportRun {
  int64_t begin, end;
};

struct SupportBlock {
  int64_t unit, units;  // the first one, and how many
  int64_t run, run_count;
};

struct Support {
  const SupportBlock* blocks;
  int64_t block_count;  // together they have all units
  const SupportRun* runs;
};

// Potentials of one image: P_g(u) = slope sqrt(near + u) - H(u) + const, Huber's function of sqrt(u):
// H = u / 2 up to u = far^2, then far sqrt(u) - far^2 / 2.
struct GroupPotentials {
  const float* energies;  // [groups, atoms]   U
  const float* slope;     // [groups]
  const float* near;      // [groups]
  const float* far;       // [groups]
  int64_t groups;
  Support rows, columns;  // of U, and of its transpose
};

// Of the Frame `filters` are the atoms, and weights of rows include 1 / k^2. Atoms in fours, a seed and its
// mirror images, have parts (isa/prior_fold.h): first both axes even, then columns odd, rows odd, both odd.
struct PriorFrame : Frame {
  const float* parts[4];               // [seeds, columns, rows and channels] of that parity each, or nullptr
  int64_t spread_margin;               // kernel - 1 in whole vectors
  int64_t spread_line;                 // floats of a row of `spread`
  int64_t first_column, column_count;  // positions along a row that count, the others are left out
};

// Scratch of one worker.
struct PriorScratch {
  float* lines;    // [rows + kernel - 1, channels, line]   the continued image
  float* v_lines;  // as lines, of v
  float* c;        // [atoms, line]   a row of coefficients, kernel - 1 zeros before and after; of a tile with
                   // parts and in parameter gradients, [atoms, block_rows]
  float* dc;       // as c, of v
  float* energy;   // [atoms, block_rows]   c^2 of a tile
  float* cross;    // as energy, c dc
  float* gates;    // [groups, block_rows]
  float* third;    // as gates
  float* columns;  // [2, block_rows, group columns]   of parameter gradients: gates and third, turned
  float* patches;  // [2, block_rows + 1, columns]     of parameter gradients
  float* folded;  // [kernel, channels, line]   rows of a row of patches, folded; this and the rest with parts
  float* v_folded;  // as folded, of v
  float* operands;  // [channels kernel (kernel + 1) / 2, block_rows]   what half of the parts are correlated
                    // with
  float* spread;    // [channels kernel^2, spread_line]   taps of a tile between margins; zeros at the start
  Term* terms;      // [channels kernel, or more: the runs of a block]
};

// Some rows of positions of one image; `v` of Hessian products only.
struct PriorRows {
  GroupPotentials potentials;
  const float* x;  // [channels, height, width]
  const float* v;  // as x or nullptr
  float* sum;  // [rows + kernel - 1, channels, sum_line]: what the gradient, or the product, gets from them
  double* value;  // [1] or nullptr: what R gets from them, without the constants of the potentials
};

// Gradients of one chunk; groups are padded to whole vectors, the numbers of a group are kept in lanes.
struct PriorPartial {
  float* atoms;     // [atoms, columns]
  float* energies;  // [atoms, group columns]: transposed
  float* slope;     // [groups, sum_lanes]
  float* near;      // as slope
  float* far;       // as slope
  int64_t group_columns;
};

// Some rows of positions of one image, for the parameters' gradient of <v, grad R(x)>, or of p R(x).
struct PriorGradientRows {
  GroupPotentials potentials;
  const float* x;  // [channels, height, width]
  const float* v;  // as x or nullptr
  float p;         // where v is nullptr
  PriorPartial partial;
};

}  // namespace lpn
