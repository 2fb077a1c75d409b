#include "continuation.h"

#include <algorithm>

#include "mlp.h"
#include "threads.h"

namespace lpn {
namespace {

// Pixels per range of a thread, where blocks are added up.
constexpr int64_t pixels_per_range = int64_t{1} << 14;

// Rows of positions that go together.
constexpr int64_t least_rows = 8, most_rows = 32, blocks_wanted = 32;

}  // namespace

Frame frame_of(const FrameShape& shape,
               const float* filters,
               float alpha,
               const Mirror& mirror,
               std::vector<float>& weights) {
  Frame op{};
  op.filters = filters;
  op.units = shape.units;
  op.spacing = shape.spacing;
  op.channels = shape.channels * shape.spacing * shape.spacing;
  op.kernel = shape.kernel / shape.spacing;
  op.alpha = alpha;
  op.height = shape.height;
  op.width = shape.width;
  op.down = (shape.height + shape.kernel - 2) / shape.spacing + 1;
  op.across = (shape.width + shape.kernel - 2) / shape.spacing + 1;
  op.line = round_up(op.across, column_multiple) + round_up(op.kernel, column_multiple);
  op.sum_line = round_up(shape.width, column_multiple);
  if (mirror.rows) continue_mirrored(mirror, op, weights);
  op.columns = round_up(op.channels * op.kernel * op.kernel, column_multiple);
  return op;
}

int64_t rows_together(const Frame& op) { return std::clamp(op.down / blocks_wanted, least_rows, most_rows); }

void continue_mirrored(const Mirror& mirror, Frame& op, std::vector<float>& weights) {
  const int64_t down = op.down, across = op.across;
  op.sum_line = round_up(across + op.kernel - 1, column_multiple);
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
  for (int64_t row = 0; row < op.height + 2 * (op.spacing * op.kernel - 1); ++row)
    copies_[op.mirror.rows[row]].push_back(row);
}

void Folding::add_row(const float* sums, int64_t channel, int64_t y, float* line, float* to) const {
  const int64_t spacing = op_.spacing, margin = spacing * op_.kernel - 1, width = op_.width;
  if (!op_.mirror.rows) return add_blocks(sums, channel, y + margin, to, width);
  std::fill(line, line + line_size(), 0.0f);
  for (const int64_t row : copies_[y]) {
    if (spacing == 1) {
      add_blocks(sums, channel, row, line, op_.sum_line);
      continue;
    }
    float* part = line + (spacing + 1) * op_.sum_line;  // every pixel of one of the channels
    for (int64_t column = 0; column < spacing; ++column) {
      std::fill(part, part + op_.sum_line, 0.0f);
      add_blocks(sums, (channel * spacing + row % spacing) * spacing + column, row / spacing, part,
                 op_.sum_line);
      for (int64_t i = 0; i < op_.sum_line; ++i) line[spacing * i + column] += part[i];
    }
  }
  for (int64_t i = 0; i < width; ++i) to[i] += line[margin + i];
  for (int64_t i = 0; i < margin; ++i) to[op_.mirror.columns[i]] += line[i];
  for (int64_t i = margin + width; i < width + 2 * margin; ++i) to[op_.mirror.columns[i]] += line[i];
}

void Folding::fold(int64_t images,
                   const float* sums,
                   const float* direction,
                   const float* p,
                   const float* x,
                   float* out,
                   int threads) const {
  const int64_t channels = op_.channels / (op_.spacing * op_.spacing);
  const int64_t grain = std::max<int64_t>(1, pixels_per_range / (op_.width * channels));
  parallel_for(images * op_.height, grain, threads, [&](int, int64_t first, int64_t last) {
    std::vector<float> line(line_size());
    for (int64_t row = first; row < last; ++row) {
      const int64_t n = row / op_.height, y = row % op_.height;
      for (int64_t channel = 0; channel < channels; ++channel) {
        const int64_t at = ((n * channels + channel) * op_.height + y) * op_.width;
        for (int64_t i = 0; i < op_.width; ++i)
          out[at + i] = direction ? op_.alpha * direction[at + i] : 0.0f;
        for (int64_t i = 0; p && i < op_.width; ++i) out[at + i] += op_.alpha * p[n] * x[at + i];
        add_row(sums + n * blocks_ * sum_size(), channel, y, line.data(), out + at);
      }
    }
  });
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
