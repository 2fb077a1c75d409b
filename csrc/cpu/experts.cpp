#include "experts.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "isa.h"
#include "patch_gradient.h"
#include "threads.h"

namespace lpn {

ExpertNetwork::ExpertNetwork(const FrameShape& shape,
                             const float* filters,
                             const Network& gates,
                             const float* biases,
                             const float* odds,
                             int64_t contexts,
                             bool shared,
                             float alpha,
                             const Mirror& mirror)
    : network_(gates),
      biases_(biases),
      odds_(odds),
      contexts_(contexts),
      shared_(shared),
      images_(shape.images) {
  const MlpStage* stage = gates.mlp().stages;
  if (gates.mlp().stage_count != 1 || !stage->skip || !stage->bias || stage->head || stage->head_sq)
    throw std::invalid_argument(
        "table must give the experts as the only stage, with a bias and without a head");
  op_ = frame_of(shape, filters, alpha, mirror, weights_);
  rows_ = rows_together(op_);
  blocks_ = (height() + rows_ - 1) / rows_;
}

// As for_each_tile (isa/frame_maps.h) makes them, whatever the lanes: of block_rows positions at most.
int64_t ExpertNetwork::tiles() const { return (width() + block_rows - 1) / block_rows; }

Experts ExpertNetwork::at(int64_t image, bool along_v) const {
  const int64_t n = shared_ ? 0 : image;
  return {&network_.mlp(),
          biases_ + n * experts(),
          odds_ + n * contexts_ * experts(),
          contexts_,
          height(),
          width(),
          tiles(),
          round_up(contexts_, column_multiple),
          tile_floats(along_v)};
}

class ExpertNetwork::Scratch {
 public:
  // Level 0 for f, 1 for directions too, 2 for gradients too.
  Scratch(const ExpertNetwork& network, int64_t items, int threads, int level)
      : blocks_(network.network_, std::clamp<int64_t>(items, 1, threads), level) {
    const Frame& op = network.op_;
    const int64_t workers = std::clamp<int64_t>(items, 1, threads), experts = network.experts();
    const int64_t lines = (network.rows_ + op.kernel - 1) * op.channels * op.line;
    const int64_t row = op.units * op.line, maps = network.contexts_ * block_rows;
    const int64_t tile = network.tile_floats(level > 0), shared = 2 * block_rows;
    const int64_t second = level > 0 ? lines + maps + op.units * block_rows : 0;
    const int64_t turned = level > 1 ? 2 * block_rows * round_up(network.contexts_, column_multiple) : 0;
    const int64_t patches = level > 1 ? 2 * (block_rows + 1) * op.columns : 0;
    const int64_t each = tile + lines + row + 2 * maps + shared + second + turned + patches;
    const int64_t terms = std::max<int64_t>(2, op.channels * op.kernel);
    memory_ = allocate_floats(workers * each);
    std::fill(memory_.get(), memory_.get() + workers * each,
              0.0f);  // the ends of rows are read, never written
    terms_.resize(workers * terms);
    float* next = memory_.get();
    const auto take = [&next](int64_t count) { return std::exchange(next, next + count); };
    for (int64_t worker = 0; worker < workers; ++worker) {
      ExpertScratch scratch{};
      scratch.block = &blocks_[static_cast<int>(worker)];
      scratch.tile.c = take(tile);
      scratch.tile.powers = scratch.tile.c + op.units * block_rows;
      if (level > 0) {
        scratch.tile.dc = scratch.tile.powers + experts * block_rows;
        scratch.tile.du = scratch.tile.dc + op.units * block_rows;
      }
      scratch.lines = take(lines);
      scratch.row = take(row);
      scratch.sums = take(maps);
      scratch.logs = take(maps);
      scratch.shared = take(shared);
      if (level > 0) {
        scratch.v_lines = take(lines);
        scratch.changes = take(maps);
        scratch.e = take(op.units * block_rows);
      }
      scratch.turned = take(turned);
      scratch.patches = take(patches);
      scratch.terms = terms_.data() + worker * terms;
      scratches_.push_back(scratch);
    }
  }

  const ExpertScratch& operator[](int worker) const { return scratches_[worker]; }

 private:
  Network::Scratch blocks_;
  Floats memory_;
  std::vector<Term> terms_;
  std::vector<ExpertScratch> scratches_;
};

void ExpertNetwork::first(const ExpertsFirst& io, int threads) const {
  const Kernels& kernels = active_kernels();
  const int64_t blocks = images_ * blocks_, maps = contexts_ * height() * width();
  std::vector<double> totals(3 * blocks);
  const Scratch scratch(*this, blocks, threads, io.v ? 1 : 0);
  parallel_for(blocks, 1, threads, [&](int worker, int64_t index, int64_t) {
    const int64_t n = index / blocks_, begin = index % blocks_ * rows_;
    const ExpertsUp up{io.x + n * image_size(),
                       io.v ? io.v + n * image_size() : nullptr,
                       io.sums + n * maps,
                       io.logs + n * maps,
                       io.v ? io.changes + n * maps : nullptr,
                       totals.data() + 3 * index,
                       io.kept ? io.kept + n * kept_size(io.v) : nullptr};
    kernels.experts_up(op_, at(n, io.v), scratch[worker], up, begin, std::min(begin + rows_, height()));
  });
  std::fill(io.totals, io.totals + 3 * images_, 0.0);
  for (int64_t index = 0; index < blocks; ++index)
    for (int64_t i = 0; i < 3; ++i) io.totals[index / blocks_ * 3 + i] += totals[3 * index + i];
}

void ExpertNetwork::second(const ExpertsSecond& io, int threads) const {
  const Kernels& kernels = active_kernels();
  const int64_t columns = round_up(contexts_, column_multiple), maps = contexts_ * height() * width();
  const PatchGradient gradient(op_, network_, images_, blocks_, experts() * columns);
  if (io.gP) {
    network_.require_fits(io.numel);
    std::fill(io.gP, io.gP + io.numel, 0.0f);
  }
  const int64_t per_image = io.gP ? gradient.per_image() : blocks_, chunks = images_ * per_image;
  const Folding folding(op_, rows_, blocks_);
  const Floats sums = allocate_floats(images_ * blocks_ * folding.sum_size());
  const Floats partials = allocate_floats(io.gP ? chunks * gradient.size() : 0);
  const Scratch scratch(*this, chunks, threads, io.gP ? 2 : io.changes ? 1 : 0);
  parallel_for(chunks, 1, threads, [&](int worker, int64_t chunk, int64_t) {
    const int64_t n = chunk / per_image, part = chunk % per_image;
    float* partial = io.gP ? partials.get() + chunk * gradient.size() : nullptr;
    if (partial) std::fill(partial, partial + gradient.size(), 0.0f);
    for (int64_t block = part * blocks_ / per_image; block < (part + 1) * blocks_ / per_image; ++block) {
      const ExpertsDown down{io.x + n * image_size(),
                             io.v ? io.v + n * image_size() : nullptr,
                             io.p ? io.p + n : nullptr,
                             io.slopes ? io.slopes + n * maps : nullptr,
                             io.changes ? io.changes + n * maps : nullptr,
                             io.kept ? io.kept + n * kept_size(io.v) : nullptr,
                             sums.get() + (n * blocks_ + block) * folding.sum_size(),
                             partial,
                             gradient.filters_at(),
                             gradient.more_at()};
      kernels.experts_down(op_, at(n, io.v), scratch[worker], down, block * rows_,
                           std::min((block + 1) * rows_, height()));
    }
  });
  if (io.changes)
    folding.fold(images_, sums.get(), io.v, io.p, io.x, io.out, threads);
  else
    folding.fold(images_, sums.get(), io.x, nullptr, nullptr, io.out, threads);
  if (!io.gP) return;
  gradient.add_up(partials.get(), io.gP, io.filters_at, io.bias_gradient, threads);
  odds_of_images(gradient, partials.get(), io.odds_gradient);
}

void ExpertNetwork::odds_of_images(const PatchGradient& gradient, const float* partials, float* to) const {
  const int64_t columns = round_up(contexts_, column_multiple);
  std::vector<double> totals(experts() * columns);
  for (int64_t n = 0; n < images_; ++n) {
    std::fill(totals.begin(), totals.end(), 0.0);
    for (int64_t chunk = n * gradient.per_image(); chunk < (n + 1) * gradient.per_image(); ++chunk) {
      const float* from = partials + chunk * gradient.size() + gradient.more_at();
      for (int64_t i = 0; i < experts() * columns; ++i) totals[i] += from[i];
    }
    for (int64_t context = 0; context < contexts_; ++context)
      for (int64_t expert = 0; expert < experts(); ++expert)
        *to++ = static_cast<float>(totals[expert * columns + context]);
  }
}

void compete(const Competition& op, int threads) {
  const Kernels& kernels = active_kernels();
  parallel_for(op.height, 8, threads,
               [&](int, int64_t begin, int64_t end) { kernels.compete(op, begin, end); });
}

void average_maps(const Average& op, const float* from, float* to, int64_t maps, int threads) {
  const Kernels& kernels = active_kernels();
  const int64_t line = round_up(op.width + op.side + column_multiple, column_multiple),
                size = op.height * op.width;
  const int64_t workers = std::clamp<int64_t>(maps, 1, threads);
  const Floats lines = allocate_floats(workers * line);
  parallel_for(maps, 1, threads, [&](int worker, int64_t map, int64_t) {
    kernels.average_map(op, from + map * size, to + map * size, lines.get() + worker * line);
  });
}

}  // namespace lpn
