// Blocks of rows of coefficients, each with sums of its own for the image, which are added in order: what
// comes out does not depend on the number of threads.

#include "frame.h"

#include <algorithm>
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

// Partial gradients of a batch at least, as far as there are blocks.
constexpr int64_t chunks_wanted = 32;

// Pixels per range of a thread, where blocks are added up.
constexpr int64_t pixels_per_range = int64_t{1} << 14;

}  // namespace

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
  op_.filters = filters;
  op_.units = shape.units;
  op_.channels = shape.channels;
  op_.kernel = shape.kernel;
  op_.alpha = alpha;
  op_.height = shape.height;
  op_.width = shape.width;
  op_.line =
      round_up(shape.width + shape.kernel - 1, column_multiple) + round_up(shape.kernel, column_multiple);
  op_.sum_line = round_up(shape.width, column_multiple);
  if (mirror.rows) continue_mirrored(mirror, op_, weights_);
  op_.columns = round_up(shape.channels * shape.kernel * shape.kernel, column_multiple);
  rows_ = std::clamp(height() / blocks_wanted, least_rows, most_rows);
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
  fold(folding, sums.get(), x, nullptr, nullptr, f, threads);
  for (int64_t n = 0; psi && n < images_; ++n) {
    psi[n] = 0.0;
    for (int64_t block = n * blocks_; block < (n + 1) * blocks_; ++block) psi[n] += values[block];
  }
}

void FrameNetwork::vjp(const FrameVjp& io, int threads) const {
  const Kernels& kernels = active_kernels();
  const Mlp& mlp = network_.mlp();
  const int64_t filters_size = op_.units * op_.columns, size = network_.partial_size() + filters_size;
  if (io.gP) {
    network_.require_fits(io.numel);
    std::fill(io.gP, io.gP + io.numel, 0.0f);
    std::fill(io.bias_gradient, io.bias_gradient + images_ * network_.units(), 0.0f);
  }
  if (!io.v && !io.p) return std::fill(io.gx, io.gx + images_ * image_size(), 0.0f);
  const int64_t per_image =
      std::clamp<int64_t>((chunks_wanted + images_ - 1) / std::max<int64_t>(1, images_), 1, blocks_);
  const int64_t chunks = images_ * per_image;
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
                               network_.partial_size()};
      kernels.frame_second(op_, scratch[worker], second, block * rows_,
                           std::min((block + 1) * rows_, height()));
    }
  });
  fold(folding, sums.get(), io.v, io.p, io.x, io.gx, threads);
  if (!io.gP) return;
  std::vector<double> totals(size);
  const MlpPartials parts{partials.get(), chunks, size, totals.data()};
  parallel_for(size, sum_lanes * 64, threads,
               [&](int, int64_t begin, int64_t end) { kernels.mlp_sum_partials(parts, begin, end); });
  network_.scatter(totals.data(), io.gP);
  const int64_t taps = op_.channels * op_.kernel * op_.kernel;
  for (int64_t i = 0; i < op_.units * taps; ++i)
    io.gP[io.filters_at + i] =
        static_cast<float>(totals[network_.partial_size() + i / taps * op_.columns + i % taps]);
  for (int64_t n = 0; n < images_; ++n)
    for (int64_t l = 0; l < mlp.stage_count; ++l)
      for (int64_t unit = 0; unit < mlp.stages[l].width; ++unit) {
        double sum = 0.0;
        for (int64_t chunk = n * per_image; chunk < (n + 1) * per_image; ++chunk)
          for (int64_t lane = 0; lane < sum_lanes; ++lane)
            sum += partials.get()[chunk * size + mlp.stages[l].bias_at + unit * sum_lanes + lane];
        io.bias_gradient[n * network_.units() + mlp.stages[l].first_unit + unit] = static_cast<float>(sum);
      }
}

// out = sum of the blocks + alpha (direction + p x)
void FrameNetwork::fold(const Folding& folding,
                        const float* sums,
                        const float* direction,  // [images, channels, height, width] or nullptr
                        const float* p,          // [images] or nullptr
                        const float* x,          // as direction, where p is
                        float* out,              // as direction
                        int threads) const {
  const int64_t grain = std::max<int64_t>(1, pixels_per_range / (op_.width * op_.channels));
  parallel_for(images_ * op_.height, grain, threads, [&](int, int64_t first, int64_t last) {
    std::vector<float> line(op_.sum_line);
    for (int64_t row = first; row < last; ++row) {
      const int64_t n = row / op_.height, y = row % op_.height;
      for (int64_t channel = 0; channel < op_.channels; ++channel) {
        const int64_t at = n * image_size() + (channel * op_.height + y) * op_.width;
        for (int64_t i = 0; i < op_.width; ++i)
          out[at + i] = direction ? op_.alpha * direction[at + i] : 0.0f;
        for (int64_t i = 0; p && i < op_.width; ++i) out[at + i] += op_.alpha * p[n] * x[at + i];
        folding.add_row(sums + n * blocks_ * folding.sum_size(), channel, y, line.data(), out + at);
      }
    }
  });
}

}  // namespace lpn
