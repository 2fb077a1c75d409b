// What an instruction set provides for experts of single pixels that compete elsewhere (isa/experts.h).
//
// Plain structs and no inline function, as in kernels.h and for its reason.

#pragma once

#include "frame_kernels.h"

namespace lpn {

// What the first pass leaves for the second, tile by tile of a row: [block_rows] lanes each.
struct ExpertTile {
  float* c;       // [units]
  float* powers;  // [experts]   exp(u - the largest)
  float* dc;      // [units], along a direction only, as the next
  float* du;      // [experts]   less their mean
};

// The network at one image.
struct Experts {
  const Mlp* mlp;       // one stage: W of the experts and its place in partial gradients; linear: h
  const float* bias;    // [experts]
  const float* odds;    // [contexts, experts]
  int64_t contexts;     //
  int64_t height;       // of the positions, and width
  int64_t width;        //
  int64_t tiles;        // of a row
  int64_t columns;      // contexts, rounded up to column_multiple
  int64_t tile_floats;  // of an ExpertTile
};

// Scratch of one worker; the last ones for second order only.
struct ExpertScratch {
  const MlpBlock* block;  // z_1 and its tangent as x and v
  ExpertTile tile;        // where nothing was left
  float* lines;           // [rows + kernel - 1, channels, line]   x continued
  float* row;             // [units, line]   what goes down; mirrored: after kernel - 1 zeros
  float* sums;            // [contexts, block_rows]   L, then lambda / L
  float* logs;            // as sums
  float* shared;          // [2, block_rows]   the largest u, the mean of du
  Term* terms;            // [max(channels kernel, 2)]
  float* v_lines;         // as lines, of v
  float* changes;         // [contexts, block_rows]   dl, then (mu - lambda dl) / L
  float* e;               // [units, block_rows]
  float* turned;          // [2, block_rows, columns]   sums and changes, positions outermost
  float* patches;         // [2, block_rows, columns of the frame], a vector more each
};

// Some rows of positions of one image upwards.
struct ExpertsUp {
  const float* x;  // [channels, image height, image width]
  const float* v;  // as x or nullptr
  float* sums;     // [contexts, height, width]   L
  float* logs;     // as sums                      log L
  float* changes;  // as sums, where v is          dl
  double* totals;  // [3]   sums of w largest, w mean of du, w h . z_1
  float* kept;     // [height, tiles, tile_floats] or nullptr
};

// The same rows downwards: f, or H v + p f and gradients.
struct ExpertsDown {
  const float* x;        // [channels, image height, image width]
  const float* v;        // as x or nullptr
  const float* p;        // [1] or nullptr
  const float* slopes;   // [contexts, height, width]   lambda / L; nullptr: v is too
  const float* changes;  // as slopes                    (mu - lambda dl) / L; nullptr: f
  float* kept;           // [height, tiles, tile_floats] or nullptr; read only
  float* sum;            // [rows + kernel - 1, channels, sum_line]: what the result gets from them
  float* partial;        // added to, or nullptr: gradient of the experts, filters, odds
  int64_t filters_at;    // [units, columns of the frame]
  int64_t odds_at;       // [experts, columns]
};

// Contexts at the positions of one image, from what windows see of log L (isa/windows.h).
struct Competition {
  int64_t contexts;
  int64_t height, width;
  const float* bias;     // [contexts]
  float sharpness;       // s
  const float* rows;     // [height]   w of the rows of positions, times the head
  const float* columns;  // [width]
  const float* y;        // [contexts, height, width]   G log L
  const float* dy;       // as y or nullptr              G dl
  const float* p;        // [1] or nullptr
  float* slopes;         // as y: w rho; may be y
  float* changes;        // as y, where dy or p is: w (p rho + s rho (dy - dzeta)); may be dy
  float* zeta;           // [height, width] or nullptr
  float* dzeta;          // as zeta, where dy is
};

// Maps of positions as windows see them (isa/windows.h).
struct Average {
  const float* taps;  // [side], side odd
  int64_t side;
  int64_t height, width;
  const float* rows_before;     // [height], as the next nullptr or not
  const float* columns_before;  // [width]
  const float* rows_after;      // [height], as the next nullptr or not
  const float* columns_after;   // [width]
};

}  // namespace lpn
