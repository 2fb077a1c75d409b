// Softplus and its slopes, a vector at a time.
//
//   from u:  E = exp(-|beta u|);   z = max(u, 0) + log1p(E) / beta;   s = 1 / (1 + exp(-beta u));   r = 1 - s
//   from z:  s = 1 - exp(-beta z) = -expm1(-beta z);                  r = 1 - s = exp(-beta z)
//
// with sigma'' / beta = s r, so that  q = sigma'' / sigma'^2 = beta r / s = beta / expm1(beta z).
// s and r both keep their relative accuracy at both ends: neither is computed as one minus the other.
// No branch looks at the data, and every comparison is written so that NaN passes through.

#pragma once

#include "vector.h"

namespace lpn {
namespace {

// Fitted by csrc/tools/fit_polynomials.py.
// expm1(r) = r + r^2 Q(r), |r| <= ln(2)/2: relative error 1.4e-8 = 0.23 x 2^-24 in exact arithmetic
constexpr float expm1_coefficients[] = {
    4.999999702e-01f, 1.666654646e-01f, 4.166743532e-02f, 8.366271853e-03f, 1.387069584e-03f,
};
// log1p(e) = e + e^2 R(e), 0 <= e <= 1: relative error 5.3e-9 = 0.09 x 2^-24 in exact arithmetic
constexpr float log1p_coefficients[] = {
    -4.999993145e-01f, 3.333046436e-01f,  -2.495802045e-01f, 1.969212145e-01f,  -1.534497738e-01f,
    1.066137105e-01f,  -5.746048316e-02f, 2.008846030e-02f,  -3.291074187e-03f,
};

constexpr float smallest_normal = 1.17549435e-38f;  // 2^-126
constexpr float deepest_exponent = 87.0f;           // exp(-87) = 1.6e-38 is the last normal result

// x + x^2 (k_0 + k_1 x + ...)
template <int count>
inline Vec unit_slope_polynomial(Vec x, const float (&k)[count]) {
  Vec sum = broadcast(k[count - 1]);
  for (int i = count - 2; i >= 0; --i) sum = sum * x + k[i];
  return x + (x * x) * sum;
}

struct Exponential {
  Vec scale;     // 2^n
  Vec fraction;  // expm1(r)
};

// exp(-t) = 2^n (1 + expm1(r)) for 0 <= t <= deepest_exponent, with -t = n ln 2 + r and |r| <= ln(2)/2.
inline Exponential split_exponential(Vec t) {
  constexpr float log2_e = 1.442695041f;
  constexpr float ln2_high = 0.693359375f;  // 9 bits, so n * ln2_high is exact without FMA too
  constexpr float ln2_low = -2.12194440e-4f;
  constexpr float to_nearest = 12582912.0f;  // 1.5 x 2^23: adding it leaves the rounded value in the low bits
  const Vec shifted = to_nearest - t * log2_e;
  const Vec n = shifted - to_nearest;
  const Vec r = (-t - n * ln2_high) - n * ln2_low;
  const IntVec bits = (reinterpret_cast<IntVec>(shifted) + (127 - 0x4b400000)) << 23;
  return {reinterpret_cast<Vec>(bits), unit_slope_polynomial(r, expm1_coefficients)};
}

// exp(-t) for t >= 0; zero below the normal numbers, which would be slow and carry no digits.
inline Vec decay(Vec t) {
  const Exponential split = split_exponential(at_most(t, deepest_exponent));
  const Vec value = split.scale * split.fraction + split.scale;
  return t > deepest_exponent ? Vec{} : value;
}

inline Vec softplus(Vec u, float beta, float inverse_beta) {
  const Vec log1p = unit_slope_polynomial(decay(magnitude(u * beta)), log1p_coefficients);
  return positive_part(u) + log1p * inverse_beta;
}

struct Slope {
  Vec s;
  Vec r;  // 1 - s
};

inline Slope slope_from_z(Vec z, float beta) {
  const Vec t = at_most(z * beta, deepest_exponent);
  const Exponential split = split_exponential(t);
  const Vec grown = split.scale * split.fraction;
  // For n = 0 the scale cancels exactly and s = -expm1(r) keeps every digit of a tiny z.
  return {(1.0f - split.scale) - grown, grown + split.scale};
}

// q = beta r / s, at most 1/z. Below the normal numbers it would overflow, while e dz, which it multiplies,
// is of order s^2: the product is nothing, and q = 0 says so without producing 0 * inf.
inline Vec curvature_ratio(Slope slope, Vec z, float beta) {
  const Vec q = (beta * slope.r) / slope.s;
  return (z < smallest_normal) | (slope.s < smallest_normal) ? Vec{} : q;
}

}  // namespace
}  // namespace lpn
