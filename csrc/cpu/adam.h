// One Adam step over a list of tensors: shares the work of all of them among the threads.

#pragma once

#include <cmath>
#include <vector>

#include "isa.h"
#include "threads.h"

namespace lpn {

struct AdamTensor {
  float* parameter;       // [count]
  const float* gradient;  // [count]
  float* exp_avg;         // [count]
  float* exp_avg_sq;      // [count]
  float* step;            // [1], steps taken before; increased by one
  int64_t count;
  bool nonnegative;
};

struct AdamRates {
  double lr, beta1, beta2, eps;
};

inline void adam_step(const std::vector<AdamTensor>& tensors, const AdamRates& rates, int threads) {
  // 28 bytes per parameter: a range is 460 KB of traffic, some 20 us, large against drawing it.
  constexpr int64_t range = int64_t{1} << 14;
  struct Range {
    size_t op;
    int64_t begin, end;
  };
  std::vector<AdamStep> ops;
  std::vector<Range> ranges;
  for (const AdamTensor& tensor : tensors) {
    const double step = *tensor.step += 1.0f;
    // Scalars in double and rounded once, pow for the root: as Python computes them in torch's Adam.
    const double correction1 = 1.0 - std::pow(rates.beta1, step);
    const double correction2 = 1.0 - std::pow(rates.beta2, step);
    ops.push_back({tensor.parameter, tensor.gradient, tensor.exp_avg, tensor.exp_avg_sq,
                   static_cast<float>(1.0 - rates.beta1), static_cast<float>(rates.beta2),
                   static_cast<float>(1.0 - rates.beta2), static_cast<float>(-(rates.lr / correction1)),
                   static_cast<float>(std::pow(correction2, 0.5)), static_cast<float>(rates.eps),
                   tensor.nonnegative});
    for (int64_t begin = 0; begin < tensor.count; begin += range)
      ranges.push_back({ops.size() - 1, begin, std::min(begin + range, tensor.count)});
  }
  const auto run = active_kernels().adam_step;
  int64_t elements = 0;
  for (const AdamTensor& tensor : tensors) elements += tensor.count;
  if (elements <= 2 * range) threads = 1;  // done sooner than a second thread wakes up
  parallel_for(static_cast<int64_t>(ranges.size()), 1, threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run(ops[ranges[i].op], ranges[i].begin, ranges[i].end);
  });
}

}  // namespace lpn
