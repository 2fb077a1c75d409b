// Consecutive units go together as long as zeros that they would multiply cost less than passes of their own.

#include "support.h"

#include <algorithm>
#include <utility>

namespace lpn {
namespace {

// Shorter gaps are multiplied through.
constexpr int64_t shortest_gap = 4;

// Time of a block, in multiply-adds of a vector: loads of the operand cost about as much as one unit more.
int64_t cost(int64_t units, int64_t depth) { return (units + 1) * depth + 8; }

}  // namespace

Supports::Supports(const float* matrices, int64_t sets, int64_t rows, int64_t columns) : starts_{0} {
  for (int64_t set = 0; set < sets; ++set, matrices += rows * columns) {
    add(matrices, {rows, columns, columns, 1});
    add(matrices, {columns, 1, rows, columns});
  }
}

int64_t Supports::most_runs() const {
  int64_t most = 0;
  for (const SupportBlock& block : blocks_) most = std::max(most, block.run_count);
  return most;
}

void Supports::add(const float* matrix, const Strides& at) {
  std::vector<uint8_t> read(at.depth), own(at.depth), both(at.depth);  // by the block, a unit, and by the two
  int64_t first = 0, depth = 0;
  for (int64_t unit = 0; unit < at.units; ++unit) {
    int64_t own_depth = 0, both_depth = 0;
    for (int64_t k = 0; k < at.depth; ++k) {
      own[k] = matrix[unit * at.unit + k * at.step] != 0.0f;
      both[k] = own[k] | read[k];
      own_depth += own[k];
      both_depth += both[k];
    }
    const int64_t units = unit - first;
    if (units && cost(units + 1, both_depth) > cost(units, depth) + cost(1, own_depth)) {
      add_block(first, units, read);
      first = unit;
      depth = own_depth;
      std::swap(read, own);
    } else {
      depth = both_depth;
      std::swap(read, both);
    }
  }
  if (first < at.units) add_block(first, at.units - first, read);
  starts_.push_back(static_cast<int64_t>(blocks_.size()));
}

void Supports::add_block(int64_t unit, int64_t units, const std::vector<uint8_t>& read) {
  const int64_t before = static_cast<int64_t>(runs_.size());
  for (int64_t k = 0; k < static_cast<int64_t>(read.size()); ++k) {
    if (!read[k]) continue;
    const bool starts = static_cast<int64_t>(runs_.size()) == before || k - runs_.back().end >= shortest_gap;
    if (starts) runs_.push_back({k, k});
    runs_.back().end = k + 1;
  }
  blocks_.push_back({unit, units, before, static_cast<int64_t>(runs_.size()) - before});
}

}  // namespace lpn
