// Blocks of rows of positions, each with sums of its own for the continued image, which are added in order:
// what comes out does not depend on the number of threads.

#include "prior.h"

#include <algorithm>
#include <utility>

#include "isa.h"
#include "threads.h"

namespace lpn {
namespace {

// As in frame.cpp: kernel - 1 rows of sums more are written than positions computed.
constexpr int64_t least_rows = 8, most_rows = 32, blocks_wanted = 32;

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

ExplicitPrior::ExplicitPrior(const PriorShape& shape,
                             const PriorParameters& parameters,
                             const int64_t* rows,
                             const int64_t* columns,
                             const float* row_weights,
                             const float* column_weights)
    : parameters_(parameters), images_(shape.images), groups_(shape.groups) {
  Frame& frame = op_.frame;
  const int64_t margin = shape.kernel - 1, across = shape.width + margin;
  frame.filters = parameters.atoms;
  frame.units = shape.channels * shape.kernel * shape.kernel;
  frame.channels = shape.channels;
  frame.kernel = shape.kernel;
  frame.height = shape.height;
  frame.width = shape.width;
  frame.sum_line = round_up(across + margin, column_multiple);
  frame.line = frame.sum_line + round_up(shape.kernel, column_multiple);
  op_.rows = rows;
  op_.columns = columns;
  op_.row_weights = row_weights;
  weights_.assign(round_up(across, column_multiple), 0.0f);
  std::copy(column_weights, column_weights + across, weights_.begin());
  op_.column_weights = weights_.data();
  rows_ = std::clamp(positions() / blocks_wanted, least_rows, most_rows);
  blocks_ = (positions() + rows_ - 1) / rows_;
}

class ExplicitPrior::Scratch {
 public:
  Scratch(const ExplicitPrior& prior, int64_t items, int threads, bool second) {
    const Frame& frame = prior.op_.frame;
    const int64_t workers = std::clamp<int64_t>(items, 1, threads);
    const int64_t lines = (prior.rows_ + frame.kernel - 1) * frame.channels * frame.line;
    const int64_t row = frame.units * frame.line, tile = frame.units * block_rows,
                  gates = prior.groups_ * block_rows;
    const int64_t each = (second ? 2 : 1) * (lines + row + tile + gates),
                  terms = frame.channels * frame.kernel;
    memory_ = allocate_floats(workers * each);
    std::fill(memory_.get(), memory_.get() + workers * each, 0.0f);  // ends of rows are read, never written
    terms_.resize(workers * std::max(terms, frame.kernel));
    float* next = memory_.get();
    const auto take = [&next](int64_t count) { return std::exchange(next, next + count); };
    for (int64_t worker = 0; worker < workers; ++worker) {
      PriorScratch scratch{};
      scratch.lines = take(lines);
      scratch.c = take(row);
      scratch.energy = take(tile);
      scratch.gates = take(gates);
      if (second) {
        scratch.v_lines = take(lines);
        scratch.dc = take(row);
        scratch.cross = take(tile);
        scratch.third = take(gates);
      }
      scratch.terms = terms_.data() + worker * std::max(terms, frame.kernel);
      scratches_.push_back(scratch);
    }
  }

  const PriorScratch& operator[](int worker) const { return scratches_[worker]; }

 private:
  Floats memory_;
  std::vector<Term> terms_;
  std::vector<PriorScratch> scratches_;
};

void ExplicitPrior::run(const float* x, const float* v, double* value, float* out, int threads) const {
  const Kernels& kernels = active_kernels();
  const int64_t blocks = images_ * blocks_, atoms = op_.frame.units;
  const Floats sums = allocate_floats(blocks * sum_size());
  std::vector<double> values(value ? blocks : 0);
  const Scratch scratch(*this, blocks, threads, v != nullptr);
  parallel_for(blocks, 1, threads, [&](int worker, int64_t index, int64_t) {
    const int64_t n = index / blocks_, begin = index % blocks_ * rows_, own = parameters_.shared ? 0 : n;
    const PriorRows io{{parameters_.energies + own * groups_ * atoms, parameters_.slope + own * groups_,
                        parameters_.near + own * groups_, parameters_.far + own * groups_, groups_},
                       x + n * image_size(),
                       v ? v + n * image_size() : nullptr,
                       sums.get() + index * sum_size(),
                       value ? values.data() + index : nullptr};
    kernels.prior_rows(op_, scratch[worker], io, begin, std::min(begin + rows_, positions()));
  });
  fold(sums.get(), out, threads);
  for (int64_t n = 0; value && n < images_; ++n) {
    value[n] = 0.0;
    for (int64_t block = n * blocks_; block < (n + 1) * blocks_; ++block) value[n] += values[block];
  }
}

// out = E^T of the sum of the blocks: a row of the image gets all rows of the continued one that repeat it.
void ExplicitPrior::fold(const float* sums,
                         float* out,  // [images, channels, height, width]
                         int threads) const {
  const Frame& frame = op_.frame;
  const int64_t margin = frame.kernel - 1, rows = frame.height + 2 * margin;
  std::vector<std::vector<int64_t>> copies(frame.height);
  for (int64_t row = 0; row < rows; ++row) copies[op_.rows[row]].push_back(row);
  parallel_for(images_ * frame.height, 16, threads, [&](int, int64_t first, int64_t last) {
    std::vector<float> line(frame.sum_line);
    for (int64_t index = first; index < last; ++index) {
      const int64_t n = index / frame.height, y = index % frame.height;
      for (int64_t channel = 0; channel < frame.channels; ++channel) {
        std::fill(line.begin(), line.end(), 0.0f);
        for (const int64_t row : copies[y]) {
          const int64_t last_block = std::min(row / rows_, blocks_ - 1);
          for (int64_t block = std::max<int64_t>(0, row - margin) / rows_; block <= last_block; ++block) {
            const int64_t inside = row - block * rows_;
            if (inside >= rows_ + margin) continue;
            const float* from = sums + (n * blocks_ + block) * sum_size() +
                                (inside * frame.channels + channel) * frame.sum_line;
            for (int64_t i = 0; i < frame.sum_line; ++i) line[i] += from[i];
          }
        }
        float* to = out + n * image_size() + (channel * frame.height + y) * frame.width;
        std::copy(line.begin() + margin, line.begin() + margin + frame.width, to);
        for (int64_t i = 0; i < margin; ++i) to[op_.columns[i]] += line[i];
        for (int64_t i = margin + frame.width; i < frame.width + 2 * margin; ++i)
          to[op_.columns[i]] += line[i];
      }
    }
  });
}

}  // namespace lpn
