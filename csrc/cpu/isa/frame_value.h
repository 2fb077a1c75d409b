// The gates' part of psi, summed while their slopes are computed.
//
// z_L is needed for psi alone, and only its sum. Over pixels the logarithms in it have one weight, so one
// logarithm does for many of them, with two multiply-adds each:
//
//   sum_p log1p(E_p) = log1p(D),   1 + D = prod_p (1 + E_p),   D <- D + E (1 + D),         E = exp(-beta |u|)
//
// where D keeps all digits of small E. Sums over pixels are float64. With a mirrored border pixels have
// weights: of columns one or, of a product of their own, one half; of rows anything, the same for all that is
// in a product.

#pragma once

#include "../frame_kernels.h"
#include "activation.h"
#include "frame_maps.h"

namespace lpn {
namespace {

// Factors 1 + E <= 2 whose product float32 holds.
constexpr int64_t most_factors = 120;

typedef double WideVec __attribute__((vector_size(8 * lanes)));

// The first `count` lanes, zero in the others.
inline Vec first_of(Vec x, int64_t count) {
  if (count >= lanes) return x;
  float parts[lanes];
  store(parts, x);
  return load(parts, count < 0 ? 0 : count);
}

template <int count>
struct Slopes {
  Group<count> decayed;  // E
  Group<count> s;
};

// `activate` (activation.h) without z.
template <int count>
__attribute__((always_inline)) inline Slopes<count> slopes(const Group<count>& u,
                                                           const SoftplusRates& rates) {
  Slopes<count> result;
  result.decayed = power_of_two(map(u, [&](Vec x) { return magnitude(x) * rates.exponent; }));
  const Group<count> larger = map(result.decayed, [](Vec x) { return 1.0f / (x + 1.0f); });
  const Group<count> smaller = result.decayed * larger;
  for (int i = 0; i < count; ++i) result.s.part[i] = u.part[i] > 0.0f ? larger.part[i] : smaller.part[i];
  return result;
}

template <bool mirrored>
class FrameValue {
 public:
  FrameValue(const Mlp& gates, const SoftplusRates& rates, float* sums)
      : gates_(gates),
        rates_(rates),
        last_(softplus_at_the_end(gates) ? gates.stages + gates.stage_count - 1 : nullptr),
        sums_(sums) {
    clear();
  }

  // Begins a tile of so many lanes, of which the first `pixels` count.
  void start(int64_t count, int64_t pixels, RowWeights weights) {
    const bool another = mirrored && weights.row != weights_.row;
    if (another || factors_ + count / lanes > most_factors) add_gates();
    factors_ += count / lanes;
    pixels_ = pixels;
    weights_ = weights;
    alike_ = true;
    for (int64_t i = 0; mirrored && i < count; ++i) alike_ = alike_ && weights.columns[i] == 1.0f;
  }

  // heads . z of the tile; z: [units, block_rows]
  void add(const float* heads, const float* z, int64_t units) {
    constexpr int chains = 4;  // a single sum would wait for itself
    for (int64_t lane = 0; heads && lane < pixels_; lane += lanes) {
      Vec sum[chains] = {};
      int64_t i = 0;
      for (; i + chains <= units; i += chains)
        for (int k = 0; k < chains; ++k) sum[k] += heads[i + k] * load(z + (i + k) * block_rows + lane);
      for (; i < units; ++i) sum[0] += heads[i] * load(z + i * block_rows + lane);
      const Vec all = first_of((sum[0] + sum[1]) + (sum[2] + sum[3]), pixels_ - lane);
      total_ += wide(mirrored ? weights_.times(all, lane) : all);
    }
  }

  // weight |x|^2 of a row; x: [count]
  void add_squares(const float* x, int64_t count, float weight) {
    Vec sum{};
    for (int64_t i = 0; i < count; i += lanes) {
      const Vec part = first_of(load(x + i), count - i);
      sum += part * part;
    }
    total_ += wide(weight * sum);
  }

  // softplus(u) of one gate of the last stage, taken apart.
  template <int count>
  void add_gate(int64_t unit, int64_t lane, const Group<count>& u, const Group<count>& decayed) {
    float* at = sums_ + unit * value_parts * column_multiple;
    Vec linear = load(at), d = load(at + column_multiple);
    const int64_t left = pixels_ - lane;
    if (!alike_) {
      Vec half = load(at + 2 * column_multiple);
      for (int i = 0; i < count; ++i) {
        const Vec weight = load(weights_.columns + lane + i * lanes), e = decayed.part[i];
        linear += weight * larger_of(0.0f, u.part[i]);
        d = (weight == 1.0f ? e : Vec{}) * (d + 1.0f) + d;
        half = (weight == 0.5f ? e : Vec{}) * (half + 1.0f) + half;
      }
      store(at + 2 * column_multiple, half);
    } else if (left >= count * lanes) {
      for (int i = 0; i < count; ++i) {
        linear += larger_of(0.0f, u.part[i]);
        d = decayed.part[i] * (d + 1.0f) + d;
      }
    } else {
      for (int i = 0; i < count; ++i) {
        linear += first_of(larger_of(0.0f, u.part[i]), left - i * lanes);
        d = first_of(decayed.part[i], left - i * lanes) * (d + 1.0f) + d;
      }
    }
    store(at, linear);
    store(at + column_multiple, d);
  }

  double total() {
    add_gates();
    double sum = 0.0;
    for (int i = 0; i < lanes; ++i) sum += total_[i];
    return sum;
  }

 private:
  static bool softplus_at_the_end(const Mlp& gates) {
    return gates.stage_count && !gates.stages[gates.stage_count - 1].competing;
  }

  static WideVec wide(Vec x) { return __builtin_convertvector(x, WideVec); }

  void clear() {
    for (int64_t i = 0; last_ && i < last_->width * value_parts * column_multiple; i += lanes)
      store(sums_ + i, Vec{});
    factors_ = 0;
  }

  void add_gates() {
    for (int64_t unit = 0; last_ && unit < last_->width; ++unit) {
      const float* at = sums_ + unit * value_parts * column_multiple;
      Vec sum = load(at) + log1p_of_product(load(at + column_multiple), gates_.beta, rates_);
      if (mirrored)
        sum = weights_.row *
              (sum + 0.5f * log1p_of_product(load(at + 2 * column_multiple), gates_.beta, rates_));
      total_ += wide(last_->head[unit] * sum);
    }
    clear();
  }

  const Mlp& gates_;
  const SoftplusRates& rates_;
  const MlpStage* last_;
  float* sums_;  // [gates of the last stage, value_parts, column_multiple]   max(u, 0), D, D of the halves
  int64_t factors_ = 0;
  int64_t pixels_ = 0;
  RowWeights weights_{};
  bool alike_ = true;  // whether the pixels of the tile have the weight of their row
  WideVec total_{};
};

}  // namespace
}  // namespace lpn
