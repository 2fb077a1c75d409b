// Where matrices of energies are not zero, so that products with them skip what is (isa/prior.h).

#pragma once

#include <vector>

#include "prior_kernels.h"

namespace lpn {

class Supports {
 public:
  Supports(const float* matrices,  // [sets, rows, columns]
           int64_t sets,
           int64_t rows,
           int64_t columns);

  // Of products with a matrix, whose units are rows, and with its transpose.
  Support of_rows(int64_t set) const { return of(2 * set); }
  Support of_columns(int64_t set) const { return of(2 * set + 1); }

  int64_t most_runs() const;  // of a block

 private:
  struct Strides {
    int64_t units, unit, depth, step;  // element (u, k) at u * unit + k * step
  };
  void add(const float* matrix, const Strides& at);
  void add_block(int64_t unit, int64_t units, const std::vector<uint8_t>& read);
  Support of(int64_t product) const {
    return {blocks_.data() + starts_[product], starts_[product + 1] - starts_[product], runs_.data()};
  }

  std::vector<SupportRun> runs_;
  std::vector<SupportBlock> blocks_;
  std::vector<int64_t> starts_;  // of the blocks of each product, and their end
};

}  // namespace lpn
