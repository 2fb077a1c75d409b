// Softplus in base 2, and its slope from its value.
//
//   y = kappa u,  kappa = beta log2(e)          folded into skips and biases when they are packed
//   z' = kappa softplus_beta(u) = max(y, 0) + log2(1 + 2^-|y|)
//   s  = sigma'(u) = 1 - 2^-z'                  recovered from the stored z'
//   sigma''(u) / sigma'(u)^2 = beta (1 - s) / s
//
// The fast forms keep absolute accuracy, 16 bits see no more; the accurate ones keep relative accuracy as z'
// and s tend to zero. NaN passes through, and so does infinity.

#pragma once

#include "numbers.h"

namespace lpn {

// As in csrc/cpu/isa/exponentials.h, fitted by csrc/tools/fit_polynomials.py:
// expm1(r) = r + r^2 Q(r), |r| <= ln(2)/2;   log1p(e) = e + e^2 R(e), 0 <= e <= 1
LPN_DEVICE float expm1_near_zero(float r) {
  const float q =
      (((1.387069584e-03f * r + 8.366271853e-03f) * r + 4.166743532e-02f) * r + 1.666654646e-01f) * r +
      4.999999702e-01f;
  return r + r * r * q;
}

LPN_DEVICE float log1p_up_to_one(float e) {
  const float left =
      ((-3.291074187e-03f * e + 2.008846030e-02f) * e + -5.746048316e-02f) * e + 1.066137105e-01f;
  const float r = ((((left * e + -1.534497738e-01f) * e + 1.969212145e-01f) * e + -2.495802045e-01f) * e +
                   3.333046436e-01f) *
                      e +
                  -4.999993145e-01f;
  return e + e * e * r;
}

// log2(1 + e) = e P(e), 0 <= e <= 1, to 9e-6 of its value: 16 bits see no more.
LPN_DEVICE float log2_by_polynomial(float e) {
  const float high = (-3.441152722e-02f * e + 1.459731460e-01f) * e + -3.029841781e-01f;
  return e * (((high * e + 4.691547751e-01f) * e + -7.204234004e-01f) * e + 1.442682862e+00f);
}

// A prox asks the special-function units three times per unit of a stage, 16 results per cycle and processor,
// and issues about 20 other instructions, 128 per cycle: the two take equally long when a quarter of the
// logarithms are polynomials. That is arithmetic, not a measurement. `by_polynomial` says which: the caller
// takes one value in four, always the same units of a stage.
template <class Number>
LPN_DEVICE float softplus2(float y, bool by_polynomial) {
  const float e = simt::exp2_fast(y > 0.0f ? -y : y);
  const float log = Number::accurate ? log2_e * log1p_up_to_one(e)
                    : by_polynomial  ? log2_by_polynomial(e)
                                     : simt::log2_fast(1.0f + e);
  return (y > 0.0f ? y : 0.0f) + log;
}

template <class Number>
LPN_DEVICE float slope(float z) {
  const float direct = 1.0f - simt::exp2_fast(-z);
  if constexpr (!Number::accurate) return direct;
  const float near_zero = -expm1_near_zero(-ln2 * (z < 0.5f ? z : 0.5f));
  return z < 0.5f ? near_zero : direct;
}

// sigma'' / (beta sigma'^2), or 0 where the slope has vanished: what it multiplies has vanished faster.
LPN_DEVICE float curvature_ratio(float s) { return s > 0.0f ? simt::divide_fast(1.0f - s, s) : 0.0f; }

}  // namespace lpn
