// The dense network as a whole batch sees it: table to pointers, scratch, threads, deterministic gradient
// sums.

#pragma once

#include <memory>
#include <vector>

#include "kernels.h"

namespace lpn {

constexpr int64_t table_entries_per_stage = 6;  // width and the offsets of core, skip, bias, head, head_sq
constexpr int64_t table_entries_at_end = 2;     // offsets of linear and constant

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Floats that begin with a cache line.
struct FreeDeleter {
  void operator()(float* memory) const;
};
using Floats = std::unique_ptr<float, FreeDeleter>;
Floats allocate_floats(int64_t count);

// A dense network whose parameters lie in one flat vector. Offset -1 means absent.
class Network {
 public:
  // Throws std::invalid_argument for a table that describes no network.
  Network(const float* parameters,  // [numel]
          const int64_t* table,     // [6 stages + 2]
          int64_t dim,
          int64_t stage_count,
          float beta,
          float alpha,
          bool last_competes = false);  // what the sweeps of frame.h alone know

  Network(const Network&) = delete;  // mlp_ points into stages_
  Network& operator=(const Network&) = delete;

  // `memory` as the tape of a batch, [2, blocks, units, block_rows]: z, then e; or no tape for nullptr.
  MlpTape tape(float* memory, int64_t rows) const;

  void value_prox(const MlpProx& io, int64_t rows, int threads) const;
  void hvp(const MlpHvp& io, int64_t rows, int threads) const;

  // gP and gx are overwritten. Bit-equal for any number of threads.
  void vjp(const MlpVjp& io, float* gP, int64_t numel, int64_t rows, int threads) const;  // gP: [numel]

  // For those who run the sweeps over blocks of their own.
  const Mlp& mlp() const { return mlp_; }
  int64_t units() const { return mlp_.units; }
  int64_t partial_size() const { return partial_size_; }
  // Throws std::invalid_argument where the table leaves P.
  void require_fits(int64_t numel) const;
  // gP from the layout of a partial gradient.
  void scatter(const double* totals, float* gP) const;  // totals: [partial_size], gP: [numel]

  // Blocks for `workers`, which the network outlives; Level 0 the prox sweeps, 1 the tangent and adjoint
  // sweeps too, 2 the weight gradients too.
  class Scratch {
   public:
    Scratch(const Network& network, int64_t workers, int level);
    const MlpBlock& operator[](int worker) const { return blocks_[worker]; }

   private:
    Floats memory_;
    std::vector<Term> terms_;
    std::vector<MlpBlock> blocks_;
  };

 private:
  const int64_t* table_;
  std::vector<MlpStage> stages_;
  Mlp mlp_;
  int64_t columns_ = 0;       // in the widest gradient
  int64_t partial_size_ = 0;  // floats in one partial gradient
};

}  // namespace lpn
