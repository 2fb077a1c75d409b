// What an instruction set provides for a squared first stage under gates of single pixels (isa/frame.h).
//
// Plain structs and no inline function, as in kernels.h and for its reason.

#pragma once

#include <stdint.h>

namespace lpn {

struct Term;

// Pixels that go through the gates together: whole vectors of every instruction set. Their 49 energies and 96
// slopes, of the networks that ship, are 37 KB.
constexpr int64_t frame_pixels = 64;

// z = softplus(W z_below + b) at every pixel.
struct FrameGates {
  const float* core;   // [width, below]
  const float* bias;   // [images or 1, width] or nullptr
  int64_t bias_step;   // width, or 0 where all images share it
  const float* head;   // [width] or nullptr
  int64_t width;       // H_l
  int64_t below;       // H_{l-1}
  int64_t first_unit;  // gates of all stages before this one
};

// c = K x with zeros around x, z_1 = c^2, gates upon them. Coefficients are
// [units, height + kernel - 1, width + kernel - 1].
struct Frame {
  const float* filters;     // [units, channels, kernel, kernel]
  const float* head;        // [units], of z_1, or nullptr
  const FrameGates* gates;  // [gate_count]
  int64_t gate_count;
  int64_t units;
  int64_t channels;
  int64_t kernel;
  int64_t height, width;  // of the image
  int64_t line;           // floats of a padded row: its coefficients in whole vectors, kernel - 1 more
  int64_t sum_line;       // floats of a row of the image in whole vectors
  float beta;
};

// Scratch of one worker.
struct FrameScratch {
  float* lines;    // [rows + kernel - 1, channels, line]   x with zeros around
  float* c;        // [units, line]                         a row of coefficients, then of e_1
  float* z;        // [units, frame_pixels]                 energies c^2
  float* gates_z;  // [gates of all stages, frame_pixels]
  float* s;        // [gates of all stages, frame_pixels]
  float* e;        // [gates of all stages, frame_pixels]
  float* sums;     // [gates of the last stage, 2, column_multiple]
  Term* terms;     // [channels kernel]
};

// Some rows of the coefficients of one image.
struct FrameProx {
  int64_t image;
  const float* x;  // [channels, height, width]
  float* sum;  // [rows + kernel - 1, channels, sum_line]: what f gets from them, begin - kernel + 1 rows down
  double* psi;  // [1] or nullptr: what psi gets from them
};

}  // namespace lpn
