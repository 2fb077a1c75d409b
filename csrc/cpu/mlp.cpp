#include "mlp.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "isa.h"
#include "threads.h"

namespace lpn {
namespace {

enum TableEntry { width_entry, core_entry, skip_entry, bias_entry, head_entry, head_sq_entry };

// Partial gradients: enough chunks to feed many cores, few enough that zeroing and summing them stays small.
// The number depends on the batch and the network only, never on the threads: that is what makes the sum
// deterministic.
constexpr int64_t most_chunks = 64;
constexpr int64_t least_blocks = 4;                        // in a chunk, where the batch has that many
constexpr int64_t most_partial_floats = int64_t{1} << 24;  // 64 MiB

// Partial values that one range of the final sum reads: below this a second thread costs more than it brings.
constexpr int64_t values_per_range = int64_t{1} << 16;

const float* at_offset(const float* parameters, int64_t offset) {
  return offset < 0 ? nullptr : parameters + offset;
}

int64_t workers_of(int64_t items, int threads) { return std::clamp<int64_t>(items, 1, threads); }

int64_t blocks_of(int64_t rows) { return (rows + block_rows - 1) / block_rows; }

}  // namespace

void FreeDeleter::operator()(float* memory) const { std::free(memory); }

Floats allocate_floats(int64_t count) {
  constexpr size_t cache_line = 64;
  const auto bytes = static_cast<size_t>(round_up(count * int64_t{sizeof(float)}, cache_line));
  auto* memory = static_cast<float*>(std::aligned_alloc(cache_line, std::max(bytes, cache_line)));
  if (!memory) throw std::bad_alloc();
  return Floats(memory);
}

Network::Network(const float* parameters,
                 const int64_t* table,
                 int64_t dim,
                 int64_t stage_count,
                 float beta,
                 float alpha,
                 bool last_competes)
    : table_(table) {
  stages_.reserve(stage_count);
  int64_t units = 0;
  for (int64_t l = 0; l < stage_count; ++l) {
    const int64_t* entry = table + l * table_entries_per_stage;
    const int64_t width = entry[width_entry];
    if (width < 1)
      throw std::invalid_argument("table must give stage " + std::to_string(l) +
                                  " a width of at least 1, got " + std::to_string(width));
    if (l == 0 && entry[core_entry] >= 0)
      throw std::invalid_argument("table must give stage 0 no core (offset -1), got offset " +
                                  std::to_string(entry[core_entry]));
    MlpStage stage{};
    stage.width = width;
    stage.first_unit = units;
    stage.core = at_offset(parameters, entry[core_entry]);
    stage.skip = at_offset(parameters, entry[skip_entry]);
    stage.bias = at_offset(parameters, entry[bias_entry]);
    stage.head = at_offset(parameters, entry[head_entry]);
    stage.head_sq = at_offset(parameters, entry[head_sq_entry]);
    stage.competing = last_competes && l + 1 == stage_count;
    stage.outputs = stage.competing ? 1 : width;
    const int64_t inputs = (stage.core ? stages_.back().width : 0) + (stage.skip ? dim : 0);
    stage.tail = inputs % column_multiple <= longest_tail ? inputs % column_multiple : 0;
    stage.columns = round_up(inputs - stage.tail, column_multiple);
    stage.matrix_at = partial_size_;
    stage.tail_at = stage.matrix_at + width * stage.columns;
    stage.bias_at = stage.tail_at + width * stage.tail * sum_lanes;
    stage.head_at = stage.bias_at + (stage.bias ? width * sum_lanes : 0);
    stage.head_sq_at = stage.head_at + (stage.head ? stage.outputs * sum_lanes : 0);
    partial_size_ = stage.head_sq_at + (stage.head_sq ? width * sum_lanes : 0);
    units += width;
    columns_ = std::max(columns_, stage.columns);
    stages_.push_back(stage);
  }
  const int64_t* end = table + stage_count * table_entries_per_stage;
  mlp_ = {stages_.data(),
          stage_count,
          dim,
          units,
          at_offset(parameters, end[0]),
          at_offset(parameters, end[1]),
          beta,
          alpha,
          partial_size_,
          partial_size_ + dim * sum_lanes};
  partial_size_ += (dim + 1) * sum_lanes;
}

// Allocated before the threads start: an exception must not leave a thread.
Network::Scratch::Scratch(const Network& network, int64_t workers, int level) {
  const int64_t values = network.mlp_.units * block_rows;
  const int64_t inputs = network.mlp_.dim * block_rows;
  const int64_t columns = level > 1 ? network.columns_ * block_rows : 0;
  const int64_t adjoint_values = level > 0 ? values : 0;
  const int64_t term_count = std::max<int64_t>(2, network.mlp_.stage_count);
  const int64_t floats = 3 * inputs + block_rows + 3 * values + 3 * adjoint_values + 2 * columns;
  memory_ = allocate_floats(workers * floats);
  terms_.resize(workers * term_count);
  float* next = memory_.get();
  const auto take = [&next](int64_t count) { return std::exchange(next, next + count); };
  for (int64_t worker = 0; worker < workers; ++worker) {
    MlpBlock block{};
    block.x = take(inputs);
    block.v = take(inputs);
    block.p = take(block_rows);
    block.result = take(inputs);
    block.z = take(values);
    block.s = take(values);
    block.e = take(values);
    block.curvature = take(adjoint_values);
    block.dz = take(adjoint_values);
    block.delta = take(adjoint_values);
    block.dz_columns = take(columns);
    block.z_columns = take(columns);
    block.terms = terms_.data() + worker * term_count;
    blocks_.push_back(block);
  }
}

MlpTape Network::tape(float* memory, int64_t rows) const {
  if (!memory) return {};
  return {memory, memory + blocks_of(rows) * mlp_.units * block_rows};
}

void Network::value_prox(const MlpProx& io, int64_t rows, int threads) const {
  const Kernels& kernels = active_kernels();
  const Scratch scratch(*this, workers_of(blocks_of(rows), threads), 0);
  parallel_for(blocks_of(rows), 1, threads, [&](int worker, int64_t index, int64_t) {
    const int64_t first = index * block_rows;
    kernels.mlp_prox(mlp_, scratch[worker], io, first, std::min(block_rows, rows - first));
  });
}

void Network::hvp(const MlpHvp& io, int64_t rows, int threads) const {
  const Kernels& kernels = active_kernels();
  const Scratch scratch(*this, workers_of(blocks_of(rows), threads), 1);
  parallel_for(blocks_of(rows), 1, threads, [&](int worker, int64_t index, int64_t) {
    const int64_t first = index * block_rows;
    kernels.mlp_hvp(mlp_, scratch[worker], io, first, std::min(block_rows, rows - first));
  });
}

void Network::vjp(const MlpVjp& io, float* gP, int64_t numel, int64_t rows, int threads) const {
  require_fits(numel);
  std::fill(gP, gP + numel, 0.0f);
  if (!io.p && !io.v) {
    if (io.gx) std::fill(io.gx, io.gx + rows * mlp_.dim, 0.0f);
    return;
  }
  const Kernels& kernels = active_kernels();
  const int64_t blocks = blocks_of(rows);
  const int64_t affordable = std::clamp<int64_t>(most_partial_floats / partial_size_, 1, most_chunks);
  const int64_t chunks = std::min((blocks + least_blocks - 1) / least_blocks, affordable);
  const Floats partials = allocate_floats(chunks * partial_size_);
  const Scratch scratch(*this, workers_of(chunks, threads), 2);
  parallel_for(chunks, 1, threads, [&](int worker, int64_t chunk, int64_t) {
    float* partial = partials.get() + chunk * partial_size_;
    std::fill(partial, partial + partial_size_, 0.0f);
    const int64_t last = (chunk + 1) * blocks / chunks;
    for (int64_t index = chunk * blocks / chunks; index < last; ++index) {
      const int64_t first = index * block_rows;
      kernels.mlp_vjp(mlp_, scratch[worker], io, first, std::min(block_rows, rows - first), partial);
    }
  });
  std::vector<double> totals(partial_size_);
  const MlpPartials sums{partials.get(), chunks, partial_size_, totals.data()};
  const int64_t grain = std::max<int64_t>(values_per_range / std::max<int64_t>(1, chunks), sum_lanes);
  parallel_for(partial_size_, grain, threads,
               [&](int, int64_t begin, int64_t end) { kernels.mlp_sum_partials(sums, begin, end); });
  scatter(totals.data(), gP);
}

void Network::require_fits(int64_t numel) const {
  const auto require = [numel](int64_t offset, int64_t count) {
    if (offset >= 0 && offset + count > numel)
      throw std::invalid_argument("table must stay within numel = " + std::to_string(numel) + ", got " +
                                  std::to_string(count) + " values at offset " + std::to_string(offset));
  };
  int64_t below = 0;
  const int64_t* entry = table_;
  for (const MlpStage& stage : stages_) {
    require(entry[core_entry], stage.width * below);
    require(entry[skip_entry], stage.width * mlp_.dim);
    require(entry[bias_entry], stage.width);
    require(entry[head_entry], stage.outputs);
    require(entry[head_sq_entry], stage.width);
    below = stage.width;
    entry += table_entries_per_stage;
  }
  require(entry[0], mlp_.dim);
  require(entry[1], 1);
}

// What is kept in lanes is added up.
void Network::scatter(const double* totals,  // [partial_size]
                      float* gP) const {     // [numel]
  const auto copy = [=](int64_t from, int64_t offset, int64_t count) {
    for (int64_t i = 0; i < count; ++i) gP[offset + i] = static_cast<float>(totals[from + i]);
  };
  const auto sum = [=](int64_t from, int64_t offset, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const double* value = totals + from + i * sum_lanes;
      double total = 0.0;
      for (int64_t lane = 0; lane < sum_lanes; ++lane) total += value[lane];
      gP[offset + i] = static_cast<float>(total);
    }
  };
  const int64_t* entry = table_;
  for (size_t l = 0; l < stages_.size(); ++l, entry += table_entries_per_stage) {
    const MlpStage& stage = stages_[l];
    const int64_t core_columns = stage.core ? stages_[l - 1].width : 0;
    const int64_t skip_columns = stage.skip ? mlp_.dim : 0;
    const int64_t matrix_columns = core_columns + skip_columns - stage.tail;
    // A row of the gradient is the core's columns and then the skip's: where they end in P is not where they
    // end here.
    for (int64_t unit = 0; unit < stage.width; ++unit) {
      const auto place = [&](int64_t column) {
        return column < core_columns ? entry[core_entry] + unit * core_columns + column
                                     : entry[skip_entry] + unit * skip_columns + column - core_columns;
      };
      const int64_t matrix_at = stage.matrix_at + unit * stage.columns;
      const int64_t from_core = std::min(core_columns, matrix_columns);
      if (from_core) copy(matrix_at, place(0), from_core);
      if (matrix_columns > from_core)
        copy(matrix_at + from_core, place(from_core), matrix_columns - from_core);
      for (int64_t c = 0; c < stage.tail; ++c)
        sum(stage.tail_at + (unit * stage.tail + c) * sum_lanes, place(matrix_columns + c), 1);
    }
    if (stage.bias) sum(stage.bias_at, entry[bias_entry], stage.width);
    if (stage.head) sum(stage.head_at, entry[head_entry], stage.outputs);
    if (stage.head_sq) sum(stage.head_sq_at, entry[head_sq_entry], stage.width);
  }
  if (mlp_.linear) sum(mlp_.linear_at, entry[0], mlp_.dim);
  if (mlp_.constant) sum(mlp_.constant_at, entry[1], 1);
}

}  // namespace lpn
