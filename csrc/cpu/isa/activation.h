// z, s and 1 - s of the dense network from one u, a group of vectors at a time.
//
//   E = 2^(-|u| beta log2 e);   z = max(u, 0) + log1p(E) / beta;   s = 1 / (1 + E) or E / (1 + E)
//
// What the network spends most of its time on beside the products, so written for the multipliers, which the
// products need too: 16 of them with AVX-512. Two divisions run beside them on a unit of their own; they buy
// a logarithm of four terms, log1p(E) = 2 artanh(E / (2 + E)), and the reciprocal. Powers of two need no
// exact reduction: the rounding of beta u log2(e) shifts E by as much as that of u does. s and r = 1 - s both
// keep their relative accuracy at both ends: neither is computed as one minus the other. NaN passes through.

#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "exponentials.h"
#include "group.h"

namespace lpn {
namespace {

// Fitted by csrc/tools/fit_polynomials.py.
// 2 artanh(v) = 2 v + v^3 (k_0 + k_1 v^2 + ...), 0 <= v <= 1/3: relative error 4.5e-9 = 0.08 x 2^-24
constexpr float artanh_coefficients[] = {6.666641831e-01f, 4.002143741e-01f, 2.800302804e-01f,
                                         2.800675333e-01f};
// 2^r = 1 + r (k_0 + k_1 r + ...), |r| <= 1/2: relative error 3.0e-9 = 0.05 x 2^-24 in exact arithmetic
constexpr float power_coefficients[] = {
    6.931471825e-01f, 2.402264774e-01f, 5.550359935e-02f,
    9.618505836e-03f, 1.339080627e-03f, 1.532646274e-04f,
};

// What depends on beta alone.
struct SoftplusRates {
  float exponent;                                                     // -beta log2(e)
  float log1p[1 + sizeof(artanh_coefficients) / sizeof(float)] = {};  // for v, v^3, ... in log1p(E) / beta

  explicit SoftplusRates(float beta) : exponent(-beta * 1.442695041f) {
    log1p[0] = 2.0f / beta;
    for (int i = 1; i < int{sizeof(log1p) / sizeof(float)}; ++i) log1p[i] = artanh_coefficients[i - 1] / beta;
  }
};

// 2^y for y <= 0; zero far below the normal numbers.
template <int count>
__attribute__((always_inline)) inline Group<count> power_of_two(const Group<count>& y) {
#if defined(__AVX512F__)
  constexpr float lowest = -200.0f;  // zero already, while minus infinity has no fraction
  const auto whole = [](Vec x) -> Vec {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  };
#else
  constexpr float lowest = -126.0f;          // 2^-126 is the last normal number
  constexpr float to_nearest = 12582912.0f;  // 1.5 x 2^23: adding it leaves the rounded value in the low bits
  const auto whole = [](Vec x) { return (x + to_nearest) - to_nearest; };
#endif
  const Group<count> bounded = map(y, [](Vec x) { return larger_of(lowest, x); });
  const Group<count> n = map(bounded, whole);
  const Group<count> r = bounded - n;
  Group<count> sum = multiply_add(r, power_coefficients[5], power_coefficients[4]);
  for (int i = 3; i >= 0; --i) sum = multiply_add(sum, r, power_coefficients[i]);
  sum = multiply_add(sum, r, 1.0f);
#if defined(__AVX512F__)
  return map(sum, n, [](Vec x, Vec exponent) -> Vec { return _mm512_scalef_ps(x, exponent); });
#else
  const Group<count> power = map(n, [](Vec exponent) {
    const IntVec bits = (reinterpret_cast<IntVec>(exponent + to_nearest) + (127 - 0x4b400000)) << 23;
    return reinterpret_cast<Vec>(bits);
  });
  const Group<count> result = sum * power;
  return map(result, y, [](Vec x, Vec exponent) { return exponent < lowest ? Vec{} : x; });
#endif
}

template <int count>
struct Activation {
  Group<count> z;
  Group<count> s;
  Group<count> r;  // 1 - s
};

template <int count>
__attribute__((always_inline)) inline Activation<count> activate(const Group<count>& u,
                                                                 const SoftplusRates& rates) {
  const Group<count> decayed = power_of_two(map(u, [&](Vec x) { return magnitude(x) * rates.exponent; }));
  const Group<count> larger = map(decayed, [](Vec x) { return 1.0f / (x + 1.0f); });  // slope away from zero
  const Group<count> v = map(decayed, [](Vec x) { return x / (x + 2.0f); });
  const Group<count> smaller = decayed * larger;
  const Group<count> w = v * v;
  constexpr int last = sizeof(rates.log1p) / sizeof(float) - 1;
  Group<count> sum = multiply_add(w, rates.log1p[last], rates.log1p[last - 1]);
  for (int i = last - 2; i >= 0; --i) sum = multiply_add(sum, w, rates.log1p[i]);
  Activation<count> result;
  result.z = multiply_add(v, sum, map(u, [](Vec x) { return larger_of(0.0f, x); }));
  for (int i = 0; i < count; ++i) {
    const auto right = u.part[i] > 0.0f;
    result.s.part[i] = right ? larger.part[i] : smaller.part[i];
    result.r.part[i] = right ? smaller.part[i] : larger.part[i];
  }
  return result;
}

// log1p(D) / beta for 0 <= D < 2^127: of D itself below one, above of the exponent and the rest of 1 + D.
inline Vec log1p_of_product(Vec d, float beta, const SoftplusRates& rates) {
  const auto large = d >= 1.0f;
  const IntVec bits = reinterpret_cast<IntVec>(d + 1.0f);
  const Vec octaves = __builtin_convertvector((bits >> 23) - 127, Vec);
  const Vec x = large ? reinterpret_cast<Vec>((bits & 0x7fffff) | 0x3f800000) - 1.0f : d;
  const Vec v = x / (x + 2.0f), w = v * v;
  constexpr int last = sizeof(rates.log1p) / sizeof(float) - 1;
  Vec sum = broadcast(rates.log1p[last]);
  for (int i = last - 1; i >= 0; --i) sum = sum * w + rates.log1p[i];
  return v * sum + (large ? octaves * (0.693147181f / beta) : Vec{});
}

template <int count>
struct SlopeGroup {
  Group<count> s;
  Group<count> r;  // 1 - s
};

// The slopes again, from z: r = exp(-beta z), s = -expm1(-beta z) with every digit of a tiny z.
template <int count>
__attribute__((always_inline)) inline SlopeGroup<count> slope_of(const Group<count>& z, float beta) {
  SlopeGroup<count> result;
  for (int i = 0; i < count; ++i) {
    const Slope slope = slope_from_z(z.part[i], beta);
    result.s.part[i] = slope.s;
    result.r.part[i] = slope.r;
  }
  return result;
}

}  // namespace
}  // namespace lpn
