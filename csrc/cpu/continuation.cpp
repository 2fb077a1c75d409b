#include "continuation.h"

#include <algorithm>

#include "mlp.h"

namespace lpn {

void continue_mirrored(const Mirror& mirror, Frame& op, std::vector<float>& weights) {
  const int64_t margin = op.kernel - 1, down = op.height + margin, across = op.width + margin;
  op.sum_line = round_up(across + margin, column_multiple);
  op.line = op.sum_line + round_up(op.kernel, column_multiple);
  weights.assign(down + round_up(across, column_multiple) + column_multiple, 0.0f);
  float* columns = weights.data() + down;
  const float largest = *std::max_element(mirror.column_weights, mirror.column_weights + across);
  std::transform(mirror.row_weights, mirror.row_weights + down, weights.data(),
                 [=](float weight) { return weight * largest; });
  std::transform(mirror.column_weights, mirror.column_weights + across, columns,
                 [=](float weight) { return weight / largest; });
  op.mirror = {mirror.rows, mirror.columns, weights.data(), columns};
}

Folding::Folding(const Frame& op, int64_t rows, int64_t blocks, int64_t first, int64_t count)
    : op_(op), rows_(rows), blocks_(blocks), first_(first), count_(count) {
  if (!op.mirror.rows) return;
  copies_.resize(op.height);
  for (int64_t row = 0; row < op.height + 2 * (op.kernel - 1); ++row)
    copies_[op.mirror.rows[row]].push_back(row);
}

void Folding::add_row(const float* sums, int64_t channel, int64_t y, float* line, float* to) const {
  const int64_t margin = op_.kernel - 1, width = op_.width;
  if (!op_.mirror.rows) return add_blocks(sums, channel, y + margin, to, width);
  std::fill(line, line + op_.sum_line, 0.0f);
  for (const int64_t row : copies_[y]) add_blocks(sums, channel, row, line, op_.sum_line);
  for (int64_t i = 0; i < width; ++i) to[i] += line[margin + i];
  for (int64_t i = 0; i < margin; ++i) to[op_.mirror.columns[i]] += line[i];
  for (int64_t i = margin + width; i < width + 2 * margin; ++i) to[op_.mirror.columns[i]] += line[i];
}

// Row `row` of the continued image, of all blocks that have it.
void Folding::add_blocks(const float* sums, int64_t channel, int64_t row, float* to, int64_t count) const {
  row -= first_;
  if (row < 0 || row >= count_ + op_.kernel - 1) return;
  const int64_t first = std::max<int64_t>(0, row - op_.kernel + 1) / rows_;
  const int64_t last = std::min(row / rows_, blocks_ - 1);
  for (int64_t block = first; block <= last; ++block) {
    const float* from =
        sums + block * sum_size() + ((row - block * rows_) * op_.channels + channel) * op_.sum_line;
    for (int64_t i = 0; i < count; ++i) to[i] += from[i];
  }
}

}  // namespace lpn
