// Images continued beyond their borders, and back (frame.cpp, prior.cpp).

#pragma once

#include <vector>

#include "frame_kernels.h"
#include "kernels.h"

namespace lpn {

struct FrameShape {
  int64_t images, channels, height, width;  // shape of x
  int64_t units;                            // filters
  int64_t kernel;                           // in pixels
  int64_t spacing = 1;                      // pixels from one position to the next
};

// A first stage, without what a worker needs; `weights` holds those of mirrored positions, and is read.
Frame frame_of(const FrameShape& shape,
               const float* filters,  // [units, channels, kernel, kernel], or as Frame has them
               float alpha,
               const Mirror& mirror,
               std::vector<float>& weights);

// Rows of positions that go together. kernel - 1 rows of sums more are written than coefficients computed,
// which asks for many rows; small images on many threads ask for few.
int64_t rows_together(const Frame& op);

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
  Folding(const Frame& op, int64_t rows, int64_t blocks) : Folding(op, rows, blocks, 0, op.down) {}

  // Floats that a block writes: [rows + kernel - 1, channels, sum_line], and zeros behind.
  int64_t sum_size() const {
    return (rows_ + op_.kernel - 1) * op_.channels * op_.sum_line + column_multiple;
  }

  int64_t line_size() const { return (op_.spacing + 2) * op_.sum_line; }

  // to += row y of a channel of E^T of the sum of all blocks. The order of additions depends on shapes alone.
  void add_row(const float* sums,  // [blocks, sum_size()] of the image
               int64_t channel,
               int64_t y,
               float* line,  // scratch, [line_size()]
               float* to)    // [width]
      const;

  // out = E^T of the sum of all blocks + alpha (direction + p x) of all images.
  void fold(int64_t images,
            const float* sums,       // [images, blocks, sum_size()]
            const float* direction,  // [images, channels, height, width] or nullptr
            const float* p,          // [images] or nullptr
            const float* x,          // as direction, where p is
            float* out,              // as direction
            int threads) const;

 private:
  void add_blocks(const float* sums, int64_t channel, int64_t row, float* to, int64_t count) const;

  const Frame& op_;
  int64_t rows_, blocks_, first_, count_;
  std::vector<std::vector<int64_t>> copies_;  // rows of the continued image that repeat a row; mirrored only
};

}  // namespace lpn
