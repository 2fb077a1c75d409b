#include "patch_gradient.h"

#include <algorithm>

#include "isa.h"
#include "threads.h"

namespace lpn {
namespace {

// Partial gradients of a batch at least, as far as there are blocks.
constexpr int64_t chunks_wanted = 32;

}  // namespace

PatchGradient::PatchGradient(
    const Frame& op, const Network& gates, int64_t images, int64_t blocks, int64_t more)
    : op_(op),
      gates_(gates),
      images_(images),
      per_image_(std::clamp<int64_t>((chunks_wanted + images - 1) / std::max<int64_t>(1, images), 1, blocks)),
      more_(more) {}

void PatchGradient::add_up(
    const float* partials, float* gP, int64_t filters_at, float* biases, int threads) const {
  std::vector<double> totals(more_at());
  const MlpPartials parts{partials, chunks(), size(), totals.data()};
  parallel_for(more_at(), sum_lanes * 64, threads, [&](int, int64_t begin, int64_t end) {
    active_kernels().mlp_sum_partials(parts, begin, end);
  });
  gates_.scatter(totals.data(), gP);
  const int64_t taps = op_.channels * op_.kernel * op_.kernel;
  for (int64_t i = 0; i < op_.units * taps; ++i)
    gP[filters_at + i] = static_cast<float>(totals[this->filters_at() + i / taps * op_.columns + i % taps]);
  const Mlp& mlp = gates_.mlp();
  for (int64_t n = 0; n < images_; ++n)
    for (int64_t l = 0; l < mlp.stage_count; ++l)
      for (int64_t unit = 0; unit < mlp.stages[l].width; ++unit) {
        double sum = 0.0;
        for (int64_t chunk = n * per_image_; chunk < (n + 1) * per_image_; ++chunk)
          for (int64_t lane = 0; lane < sum_lanes; ++lane)
            sum += partials[chunk * size() + mlp.stages[l].bias_at + unit * sum_lanes + lane];
        biases[n * gates_.units() + mlp.stages[l].first_unit + unit] = static_cast<float>(sum);
      }
}

}  // namespace lpn
