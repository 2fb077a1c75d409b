// Blocks of rows of coefficients, each with sums of its own for the image, which are added in order: what
// comes out does not depend on the number of threads.

#include "frame.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "isa.h"
#include "patch_gradient.h"
#include "threads.h"

namespace lpn {
FrameNetwork::FrameNetwork(const FrameShape& shape,
                           const float* filters,
                           const Network& gates,
                           const float* biases,
                           int64_t bias_step,
                           float alpha,
                           const Mirror& mirror)
    : network_(gates), images_(shape.images) {
  const Mlp& mlp = gates.mlp();
  for (int64_t l = 0; l < mlp.stage_count; ++l) {
    const MlpStage& stage = mlp.stages[l];
    const bool reads_below = l ? stage.core && !stage.skip : stage.skip != nullptr;
    const bool has_head = l + 1 < mlp.stage_count || stage.head;
    if (!reads_below || !stage.bias || stage.head_sq || !has_head)
      throw std::invalid_argument(
          "table must give every stage of gates what reads the stage below, a bias, no "
          "squared head, and the last one a head; stage " +
          std::to_string(l) + " has others");
  }
  op_ = frame_of(shape, filters, alpha, mirror, weights_);
  rows_ = rows_together(op_);
  blocks_ = (height() + rows_ - 1) / rows_;
  for (int64_t n = 0; n < images_; ++n)
    for (int64_t l = 0; l < mlp.stage_count; ++l) {
      stages_.push_back(mlp.stages[l]);
      stages_.back().bias = biases + n * bias_step + mlp.stages[l].first_unit;
    }
  for (int64_t n = 0; n < images_; ++n) {
    gates_.push_back(mlp);
    gates_.back().stages = stages_.data() + n * mlp.stage_count;
  }
}

class FrameNetwork::Scratch {
 public:
  Scratch(const FrameNetwork& network, int64_t items, int threads, int level)
      : gates_(network.network_, std::clamp<int64_t>(items, 1, threads), level) {
    const Frame& op = network.op_;
    const Mlp& gates = network.network_.mlp();
    const int64_t workers = std::clamp<int64_t>(items, 1, threads);
    const int64_t lines = (network.rows_ + op.kernel - 1) * op.channels * op.line;
    const int64_t row = op.units * op.line, tile = op.units * block_rows;
    const int64_t sums =
        gates.stage_count ? gates.stages[gates.stage_count - 1].width * value_parts * column_multiple : 0;
    const int64_t patches = level > 1 ? 2 * (block_rows + 1) * op.columns : 0;
    const int64_t second = level > 0 ? lines + row + tile : 0;
    const int64_t each = lines + row + sums + second + patches, terms = op.channels * op.kernel;
    memory_ = allocate_floats(workers * each);
    std::fill(memory_.get(), memory_.get() + workers * each,
              0.0f);  // the ends of rows are read, never written
    terms_.resize(workers * terms);
    float* next = memory_.get();
    const auto take = [&next](int64_t count) { return std::exchange(next, next + count); };
    for (int64_t worker = 0; worker < workers; ++worker) {
      FrameScratch scratch{};
      scratch.gates = &gates_[static_cast<int>(worker)];
      scratch.lines = take(lines);
      scratch.c = take(row);
      scratch.sums = take(sums);
      if (level > 0) {
        scratch.v_lines = take(lines);
        scratch.dc = take(row);
        scratch.e = take(tile);
      }
      scratch.patches = take(patches);
      scratch.terms = terms_.data() + worker * terms;
      scratches_.push_back(scratch);
    }
  }

  const FrameScratch& operator[](int worker) const { return scratches_[worker]; }

 private:
  Network::Scratch gates_;
  Floats memory_;
  std::vector<Term> terms_;
  std::vector<FrameScratch> scratches_;
};

void FrameNetwork::value_prox(const float* x, double* psi, float* f, int threads) const {
  const Kernels& kernels = active_kernels();
  const int64_t blocks = images_ * blocks_;
  const Folding folding(op_, rows_, blocks_);
  const Floats sums = allocate_floats(blocks * folding.sum_size());
  std::vector<double> values(psi ? blocks : 0);
  const Scratch scratch(*this, blocks, threads, 0);
  parallel_for(blocks, 1, threads, [&](int worker, int64_t index, int64_t) {
    const int64_t n = index / blocks_, begin = index % blocks_ * rows_;
    const FrameProx io{&gates_[n], x + n * image_size(), sums.get() + index * folding.sum_size(),
                       psi ? values.data() + index : nullptr};
    kernels.frame_prox(op_, scratch[worker], io, begin, std::min(begin + rows_, height()));
  });
  folding.fold(images_, sums.get(), x, nullptr, nullptr, f, threads);
  for (int64_t n = 0; psi && n < images_; ++n) {
    psi[n] = 0.0;
    for (int64_t block = n * blocks_; block < (n + 1) * blocks_; ++block) psi[n] += values[block];
  }
}

void FrameNetwork::vjp(const FrameVjp& io, int threads) const {
  const Kernels& kernels = active_kernels();
  const PatchGradient gradient(op_, network_, images_, blocks_);
  if (io.gP) {
    network_.require_fits(io.numel);
    std::fill(io.gP, io.gP + io.numel, 0.0f);
    std::fill(io.bias_gradient, io.bias_gradient + images_ * network_.units(), 0.0f);
  }
  if (!io.v && !io.p) return std::fill(io.gx, io.gx + images_ * image_size(), 0.0f);
  const int64_t per_image = gradient.per_image(), chunks = gradient.chunks(), size = gradient.size();
  const Folding folding(op_, rows_, blocks_);
  const Floats sums = allocate_floats(images_ * blocks_ * folding.sum_size());
  const Floats partials = allocate_floats(io.gP ? chunks * size : 0);
  const Scratch scratch(*this, chunks, threads, io.gP ? 2 : 1);
  parallel_for(chunks, 1, threads, [&](int worker, int64_t chunk, int64_t) {
    const int64_t n = chunk / per_image, part = chunk % per_image;
    float* partial = io.gP ? partials.get() + chunk * size : nullptr;
    if (partial) std::fill(partial, partial + size, 0.0f);
    for (int64_t block = part * blocks_ / per_image; block < (part + 1) * blocks_ / per_image; ++block) {
      const FrameSecond second{&gates_[n],
                               io.x + n * image_size(),
                               io.v ? io.v + n * image_size() : nullptr,
                               io.p ? io.p + n : nullptr,
                               sums.get() + (n * blocks_ + block) * folding.sum_size(),
                               partial,
                               gradient.filters_at()};
      kernels.frame_second(op_, scratch[worker], second, block * rows_,
                           std::min((block + 1) * rows_, height()));
    }
  });
  folding.fold(images_, sums.get(), io.v, io.p, io.x, io.gx, threads);
  if (io.gP) gradient.add_up(partials.get(), io.gP, io.filters_at, io.bias_gradient, threads);
}

}  // namespace lpn
