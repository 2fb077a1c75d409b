// What an instruction set provides for explicit priors (isa/prior.h).
//
// Plain structs and no inline function, as in kernels.h and for its reason.

#pragma once

#include <stdint.h>

#include "frame_kernels.h"

namespace lpn {

// Potentials of one image: P_g(u) = slope sqrt(near + u) - H(u) + const, Huber's function of sqrt(u):
// H = u / 2 up to u = far^2, then far sqrt(u) - far^2 / 2.
struct GroupPotentials {
  const float* energies;  // [groups, atoms]   U
  const float* slope;     // [groups]
  const float* near;      // [groups]
  const float* far;       // [groups]
  int64_t groups;
};

// Scratch of one worker. Of the Frame `filters` are the atoms, and weights of rows include 1 / k^2.
struct PriorScratch {
  float* lines;    // [rows + kernel - 1, channels, line]   the continued image
  float* v_lines;  // as lines, of v
  float* c;        // [atoms, line]   a row of coefficients, kernel - 1 zeros before and after
  float* dc;       // as c, of v
  float* energy;   // [atoms, block_rows]   c^2 of a tile
  float* cross;    // as energy, c dc
  float* gates;    // [groups, block_rows]
  float* third;    // as gates
  float* columns;  // [2, block_rows, group columns]   of parameter gradients: gates and third, turned
  float* patches;  // [2, block_rows + 1, columns]     of parameter gradients
  Term* terms;     // [channels kernel]
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
