// What an instruction set provides for a squared first stage under gates of single pixels (isa/frame.h,
// isa/frame_second.h).
//
// Plain structs and no inline function, as in kernels.h and for its reason.

#pragma once

#include <stdint.h>

namespace lpn {

// Sums of every gate for psi: of max(u, 0), and two products (isa/frame_value.h).
constexpr int64_t value_parts = 3;

struct Mlp;
struct MlpBlock;
struct Term;

// An image continued by kernel - 1 mirrored pixels on every side, and how often its patches count.
struct Mirror {
  const int64_t* rows;     // [height + 2 (spacing kernel - 1)]   row of the image that is repeated; nullptr:
                           // zeros
  const int64_t* columns;  // [width + 2 (spacing kernel - 1)]
  const float* row_weights;     // [down]                      of the positions of patches
  const float* column_weights;  // [across in whole vectors]   1, 1/2, and zeros at the end
};

// c = K x with zeros around x, or mirrored, z_1 = c^2; the gates, a dense network of every pixel's z_1, are
// an Mlp of their own. Coefficients are [units, down, across].
//
// Where positions lie `spacing` pixels apart, which is for mirrored images, the spacing^2 pixels that a shift
// by one position moves alike are channels, (channel, row, column): filters of so many channels more, of
// sides shorter by as much, then have a patch at every position.
struct Frame {
  const float* filters;  // [units, channels, kernel, kernel]
  int64_t units;
  int64_t channels;
  int64_t kernel;
  int64_t spacing;
  int64_t height, width;  // size of the image
  int64_t down, across;   // positions: (height + spacing kernel - 2) / spacing + 1
  int64_t line;           // floats of a padded row: its coefficients in whole vectors, kernel - 1 more
  int64_t sum_line;       // floats of a row of the image, mirrored: of the continued one, in whole vectors
  int64_t columns;        // channels kernel^2, rounded up to column_multiple
  float alpha;
  Mirror mirror;
};

// Scratch of one worker; the last four of second order only.
struct FrameScratch {
  const MlpBlock* gates;  // block_rows pixels each, z_1 and its tangent as x and v
  float* lines;           // [rows + kernel - 1, channels, line]   x continued
  float* c;        // [units, line]   a row of c, then of e_1 or delta_1; mirrored: after kernel - 1 zeros
  float* sums;     // [gates of the last stage, value_parts, column_multiple]
  Term* terms;     // [channels kernel]
  float* v_lines;  // as lines, of v
  float* dc;       // as c, of v
  float* e;        // [units, block_rows]                   e_1 of a tile
  float* patches;  // [2, block_rows, columns], a vector more each
};

// Some rows of the coefficients of one image.
struct FrameProx {
  const Mlp* gates;
  const float* x;  // [channels, height, width]
  float* sum;  // [rows + kernel - 1, channels, sum_line]: what f gets from them, begin - kernel + 1 rows down
  double* psi;  // [1] or nullptr: what psi gets from them
};

struct FrameSecond {
  const Mlp* gates;
  const float* x;  // [channels, height, width]
  const float* v;  // as x or nullptr, cotangent of f
  const float* p;  // [1] or nullptr, cotangent of psi; one of the two is there
  float* sum;      // as above, of H v + p f
  float* partial;  // added to, or nullptr: gradient of the gates, [units, columns] of the filters
  int64_t filters_at;
};

}  // namespace lpn
