// What an instruction set provides for the parallel-beam projector: resampling of one line, and its
// transpose.
//
// Plain structs and no inline function, as in kernels.h and for its reason.

#pragma once

#include <stdint.h>

namespace lpn {

// Zero elements before and after the `positions` of a line: whatever a clamped sample reads is there.
constexpr int64_t pad_before = 1;
constexpr int64_t pad = 3;

// Samples k = 0 .. count - 1 at origin + k step, between the elements 0 .. positions - 1 of a line.
struct Sampling {
  double origin;
  double step;
  double scale;  // factor on every sample
  int64_t positions;
  int64_t count;
};

// One element of a line or of the samples holds `lanes` numbers, one of every image of a group: weights and
// addresses are computed once and serve them all.
template <class Scalar>
struct ResampleKernels {
  int64_t lanes;
  // samples[k] += scale * (line, linearly interpolated at origin + k step, zero outside)
  void (*gather)(const Sampling&,
                 const Scalar* line,  // [positions + pad, lanes]
                 Scalar* samples);    // [count, lanes]
  // The transpose:  line[i] += sum_k scale * max(0, 1 - |origin + k step - i|) samples[k]
  void (*scatter)(const Sampling&,
                  const Scalar* samples,  // [count, lanes]
                  Scalar* line);          // [positions + pad, lanes]
};

}  // namespace lpn
