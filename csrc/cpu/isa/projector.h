// Linear interpolation along a line at equidistant samples, and its transpose.
//
//   p_k = origin + k step,   i = floor(p_k),   w = p_k - i
//   gather    samples[k] += scale ((1 - w) line[i] + w line[i + 1])
//   scatter   line[i] += scale (1 - w) samples[k],   line[i + 1] += scale w samples[k]
//
// The images of a group lie along the lanes. Positions and weights of a tile of samples are computed first,
// in double, in a loop of their own that vectorises over k. Both kernels take them from there, so the two
// operators are transposes of each other to the last bit of every weight.

#pragma once

#include "../projector_kernels.h"
#include "vector.h"

namespace lpn {
namespace {

template <class Scalar>
struct Lanes {
  static constexpr int64_t count = 4 * lanes / static_cast<int64_t>(sizeof(Scalar));
  typedef Scalar Vec __attribute__((vector_size(4 * lanes), aligned(4), may_alias));
};

constexpr int64_t samples_per_tile = 64;  // 64 x (4 + 8 + 8) B of weights stay in L1 beside the lines

template <class Scalar>
struct Weights {
  int32_t at[samples_per_tile];  // element of the padded line
  Scalar low[samples_per_tile];
  Scalar high[samples_per_tile];
};

// Samples first <= k < first + count; a sample outside the line is moved onto the zeros around it.
template <class Scalar>
inline void weigh(const Sampling& s, int64_t first, int64_t count, Weights<Scalar>& w) {
  const double start = s.origin + pad_before + static_cast<double>(first) * s.step;
  const double last = static_cast<double>(s.positions + pad_before);
  for (int32_t k = 0; k < static_cast<int32_t>(count); ++k) {
    double p = start + k * s.step;
    p = p > 0.0 ? p : 0.0;
    p = p < last ? p : last;
    const int32_t whole = static_cast<int32_t>(p);  // floor, as p >= 0
    const double rest = p - whole;
    w.at[k] = whole;
    w.low[k] = static_cast<Scalar>(s.scale * (1.0 - rest));
    w.high[k] = static_cast<Scalar>(s.scale * rest);
  }
}

// The samples that meet the line at all lie in first <= k < end, which may hold one too many on either side.
struct Range {
  int64_t first, end;
};

inline Range samples_on_line(const Sampling& s) {
  const double low = -1.0 - s.origin, high = static_cast<double>(s.positions) - s.origin;  // bounds on k step
  if (s.step == 0.0) return {0, low < 0.0 && high > 0.0 ? s.count : 0};
  const double a = low / s.step, b = high / s.step;
  const double count = static_cast<double>(s.count);
  double first = (a < b ? a : b), end = (a < b ? b : a) + 2.0;
  first = first > 0.0 ? first : 0.0;
  end = end < count ? end : count;
  if (!(first < end)) return {0, 0};
  return {static_cast<int64_t>(first), static_cast<int64_t>(end)};
}

template <class Scalar>
void gather_samples(const Sampling& s, const Scalar* line, Scalar* samples) {
  using Vec = typename Lanes<Scalar>::Vec;
  const Vec* from = reinterpret_cast<const Vec*>(line);
  Vec* to = reinterpret_cast<Vec*>(samples);
  const Range range = samples_on_line(s);
  Weights<Scalar> w;
  for (int64_t first = range.first; first < range.end; first += samples_per_tile) {
    const int64_t count = range.end - first < samples_per_tile ? range.end - first : samples_per_tile;
    weigh(s, first, count, w);
    for (int64_t k = 0; k < count; ++k) {
      const Vec* pair = from + w.at[k];
      to[first + k] += w.low[k] * pair[0] + w.high[k] * pair[1];
    }
  }
}

template <class Scalar>
void scatter_samples(const Sampling& s, const Scalar* samples, Scalar* line) {
  using Vec = typename Lanes<Scalar>::Vec;
  const Vec* from = reinterpret_cast<const Vec*>(samples);
  Vec* to = reinterpret_cast<Vec*>(line);
  const Range range = samples_on_line(s);
  Weights<Scalar> w;
  for (int64_t first = range.first; first < range.end; first += samples_per_tile) {
    const int64_t count = range.end - first < samples_per_tile ? range.end - first : samples_per_tile;
    weigh(s, first, count, w);
    for (int64_t k = 0; k < count; ++k) {
      Vec* pair = to + w.at[k];
      const Vec value = from[first + k];
      pair[0] += w.low[k] * value;
      pair[1] += w.high[k] * value;
    }
  }
}

template <class Scalar>
constexpr ResampleKernels<Scalar> resample_kernels() {
  return {Lanes<Scalar>::count, gather_samples<Scalar>, scatter_samples<Scalar>};
}

}  // namespace
}  // namespace lpn
