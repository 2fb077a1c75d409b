// Blocks of rows of coefficients, each with sums of its own, which are added in order: what a thread computes
// does not depend on their number.

#include "frame.h"

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "isa.h"
#include "threads.h"

namespace lpn {
namespace {

// Rows that go together. kernel - 1 rows of sums more are written than coefficients computed, which asks for
// many rows; small images on many threads ask for few.
constexpr int64_t least_rows = 8, most_rows = 32, blocks_wanted = 32;

// Pixels of f per range of a thread.
constexpr int64_t pixels_per_range = int64_t{1} << 14;

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

std::unique_ptr<float[]> floats(int64_t count) { return std::unique_ptr<float[]>(new float[count]); }

}  // namespace

FrameNetwork::FrameNetwork(const Frame& op, std::vector<FrameGates> gates, float alpha)
    : gates_(std::move(gates)), op_(op), alpha_(alpha) {
  int64_t below = op.units, units = 0;
  for (FrameGates& stage : gates_) {
    if (stage.below != below)
      throw std::invalid_argument("gates must read the " + std::to_string(below) + " units below them, got " +
                                  std::to_string(stage.below));
    stage.first_unit = units;
    units += stage.width;
    below = stage.width;
  }
  if (!gates_.empty() && !gates_.back().head)
    throw std::invalid_argument("the last gates must have a head, got none");
  op_.gates = gates_.data();
  op_.gate_count = static_cast<int64_t>(gates_.size());
  op_.line = round_up(round_up(op.width + op.kernel - 1, column_multiple) + op.kernel - 1, column_multiple);
  op_.sum_line = round_up(op.width, column_multiple);
  const int64_t height = op.height + op.kernel - 1;
  rows_ = std::clamp(height / blocks_wanted, least_rows, most_rows);
  blocks_ = (height + rows_ - 1) / rows_;
}

// One per worker, allocated before the threads start: an exception must not leave a thread.
class FrameNetwork::Scratch {
 public:
  Scratch(const FrameNetwork& network, int64_t blocks, int threads) {
    const Frame& op = network.op_;
    const int64_t workers = std::max<int64_t>(1, std::min<int64_t>(threads, blocks));
    const int64_t lines = (network.rows_ + op.kernel - 1) * op.channels * op.line, row = op.units * op.line;
    int64_t gates = 0;
    for (const FrameGates& stage : network.gates_) gates += stage.width;
    const int64_t sums = network.gates_.empty() ? 0 : network.gates_.back().width * 2 * column_multiple;
    const int64_t each =
        round_up(lines + row + op.units * frame_pixels + 3 * gates * frame_pixels + sums, column_multiple);
    const int64_t term_count = op.channels * op.kernel;
    memory_ = floats(workers * each + column_multiple);
    std::fill(memory_.get(), memory_.get() + workers * each + column_multiple,
              0.0f);  // margins are never written
    terms_.resize(workers * term_count);
    const auto address = reinterpret_cast<uintptr_t>(memory_.get()) / sizeof(float);
    float* next = memory_.get() + (column_multiple - address % column_multiple) % column_multiple;
    const auto take = [&next](int64_t count) { return std::exchange(next, next + count); };
    for (int64_t worker = 0; worker < workers; ++worker) {
      FrameScratch scratch{};
      scratch.z = take(op.units * frame_pixels);
      scratch.gates_z = take(gates * frame_pixels);
      scratch.s = take(gates * frame_pixels);
      scratch.e = take(gates * frame_pixels);
      scratch.sums = take(sums);
      scratch.lines = take(lines);
      scratch.c = take(row);
      scratch.terms = terms_.data() + worker * term_count;
      scratches_.push_back(scratch);
    }
  }

  const FrameScratch& operator[](int worker) const { return scratches_[worker]; }

 private:
  std::unique_ptr<float[]> memory_;
  std::vector<Term> terms_;
  std::vector<FrameScratch> scratches_;
};

void FrameNetwork::value_prox(const float* x, double* psi, float* f, int64_t images, int threads) const {
  const Kernels& kernels = active_kernels();
  const int64_t image = op_.channels * op_.height * op_.width, height = op_.height + op_.kernel - 1;
  const int64_t step = (rows_ + op_.kernel - 1) * op_.channels * op_.sum_line;
  const int64_t blocks = images * blocks_;
  const auto sums = floats(blocks * step);
  std::vector<double> values(psi ? blocks : 0), squares(psi ? images * op_.height : 0);
  const Scratch scratch(*this, blocks, threads);
  parallel_for(blocks, 1, threads, [&](int worker, int64_t index, int64_t) {
    const int64_t n = index / blocks_, begin = index % blocks_ * rows_;
    const FrameProx io{n, x + n * image, sums.get() + index * step, psi ? values.data() + index : nullptr};
    kernels.frame_prox(op_, scratch[worker], io, begin, std::min(begin + rows_, height));
  });
  // f = sum of the blocks + alpha x;   row y of the image lies in row y + kernel - 1 of the sums
  const int64_t grain = std::max<int64_t>(1, pixels_per_range / (op_.width * op_.channels));
  parallel_for(images * op_.height, grain, threads, [&](int, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t n = row / op_.height, y = row % op_.height, below = y + op_.kernel - 1;
      const int64_t first_block = y / rows_, last_block = std::min(below / rows_, blocks_ - 1);
      double square = 0.0;
      for (int64_t channel = 0; channel < op_.channels; ++channel) {
        const int64_t at = n * image + (channel * op_.height + y) * op_.width;
        for (int64_t i = 0; i < op_.width; ++i) f[at + i] = alpha_ * x[at + i];
        for (int64_t block = first_block; block <= last_block; ++block) {
          const int64_t within = below - block * rows_;
          const float* from =
              sums.get() + (n * blocks_ + block) * step + (within * op_.channels + channel) * op_.sum_line;
          for (int64_t i = 0; i < op_.width; ++i) f[at + i] += from[i];
        }
        if (!psi || alpha_ == 0.0f) continue;
        for (int64_t i = 0; i < op_.width; ++i) square += static_cast<double>(x[at + i]) * x[at + i];
      }
      if (psi) squares[row] = square;
    }
  });
  for (int64_t n = 0; psi && n < images; ++n) {
    double sum = 0.0, square = 0.0;
    for (int64_t block = n * blocks_; block < (n + 1) * blocks_; ++block) sum += values[block];
    for (int64_t row = n * op_.height; row < (n + 1) * op_.height; ++row) square += squares[row];
    psi[n] = sum + 0.5 * alpha_ * square;
  }
}

}  // namespace lpn
