// Blocks of rows of positions, each with sums of its own for the continued image, which are added in order:
// what comes out does not depend on the number of threads.

#include "prior.h"

#include <algorithm>
#include <utility>

#include "continuation.h"
#include "isa.h"
#include "threads.h"

namespace lpn {
namespace {

// As in frame.cpp: kernel - 1 rows of sums more are written than positions computed.
constexpr int64_t least_rows = 8, most_rows = 32, blocks_wanted = 32;

}  // namespace

ExplicitPrior::ExplicitPrior(const PriorShape& shape, const PriorParameters& parameters, const Mirror& mirror)
    : parameters_(parameters), images_(shape.images), groups_(shape.groups) {
  op_.filters = parameters.atoms;
  op_.units = shape.channels * shape.kernel * shape.kernel;
  op_.channels = shape.channels;
  op_.kernel = shape.kernel;
  op_.height = shape.height;
  op_.width = shape.width;
  continue_mirrored(mirror, op_, weights_);
  rows_ = std::clamp(positions() / blocks_wanted, least_rows, most_rows);
  blocks_ = (positions() + rows_ - 1) / rows_;
}

class ExplicitPrior::Scratch {
 public:
  Scratch(const ExplicitPrior& prior, int64_t items, int threads, bool second) {
    const Frame& frame = prior.op_;
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
  const int64_t blocks = images_ * blocks_, atoms = op_.units;
  const Folding folding(op_, rows_, blocks_);
  const Floats sums = allocate_floats(blocks * folding.sum_size());
  std::vector<double> values(value ? blocks : 0);
  const Scratch scratch(*this, blocks, threads, v != nullptr);
  parallel_for(blocks, 1, threads, [&](int worker, int64_t index, int64_t) {
    const int64_t n = index / blocks_, begin = index % blocks_ * rows_, own = parameters_.shared ? 0 : n;
    const PriorRows io{{parameters_.energies + own * groups_ * atoms, parameters_.slope + own * groups_,
                        parameters_.near + own * groups_, parameters_.far + own * groups_, groups_},
                       x + n * image_size(),
                       v ? v + n * image_size() : nullptr,
                       sums.get() + index * folding.sum_size(),
                       value ? values.data() + index : nullptr};
    kernels.prior_rows(op_, scratch[worker], io, begin, std::min(begin + rows_, positions()));
  });
  parallel_for(images_ * op_.height, 16, threads, [&](int, int64_t first, int64_t last) {
    std::vector<float> line(op_.sum_line);
    for (int64_t row = first; row < last; ++row) {
      const int64_t n = row / op_.height, y = row % op_.height;
      for (int64_t channel = 0; channel < op_.channels; ++channel) {
        float* to = out + n * image_size() + (channel * op_.height + y) * op_.width;
        std::fill(to, to + op_.width, 0.0f);
        folding.add_row(sums.get() + n * blocks_ * folding.sum_size(), channel, y, line.data(), to);
      }
    }
  });
  for (int64_t n = 0; value && n < images_; ++n) {
    value[n] = 0.0;
    for (int64_t block = n * blocks_; block < (n + 1) * blocks_; ++block) value[n] += values[block];
  }
}

}  // namespace lpn
