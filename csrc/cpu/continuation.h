// Images continued beyond their borders, and back (frame.cpp, prior.cpp).

#pragma once

#include <vector>

#include "frame_kernels.h"
#include "kernels.h"

namespace lpn {

// Lets op continue images mirrored. `mirror` may have any weights and none at the end; `weights` holds those
// of op.
void continue_mirrored(const Mirror& mirror, Frame& op, std::vector<float>& weights);

// E^T of what blocks of rows of positions found for an image.
class Folding {
 public:
  Folding(const Frame& op,
          int64_t rows,    // of positions in a block
          int64_t blocks,  // in an image
          int64_t first,   // row of positions
          int64_t count);  // rows of positions in an image

  // Of all positions.
  Folding(const Frame& op, int64_t rows, int64_t blocks)
      : Folding(op, rows, blocks, 0, op.height + op.kernel - 1) {}

  // Floats that a block writes: [rows + kernel - 1, channels, sum_line], and zeros behind.
  int64_t sum_size() const {
    return (rows_ + op_.kernel - 1) * op_.channels * op_.sum_line + column_multiple;
  }

  // to += row y of a channel of E^T of the sum of all blocks. The order of additions depends on shapes alone.
  void add_row(const float* sums,  // [blocks, sum_size()] of the image
               int64_t channel,
               int64_t y,
               float* line,  // scratch, [sum_line]
               float* to)    // [width]
      const;

 private:
  void add_blocks(const float* sums, int64_t channel, int64_t row, float* to, int64_t count) const;

  const Frame& op_;
  int64_t rows_, blocks_, first_, count_;
  std::vector<std::vector<int64_t>> copies_;  // rows of the continued image that repeat a row; mirrored only
};

}  // namespace lpn
