// Adam and the projection in one pass: 16 bytes read and 12 written per parameter, where the steps apart
// move 80.
//
//   m += (1 - beta1) (g - m);   v = beta2 v + (1 - beta2) g^2;   p -= lr / c1 m / (sqrt(v) / c2 + eps)
//   p = max(p, 0) where p must not be negative;      c1 = 1 - beta1^t,  c2 = sqrt(1 - beta2^t)
//
// Operations, their order and their fusing are those of torch's Adam on vectors, so m and v come out bit for
// bit as there. The square root here is rounded correctly, torch's may be off by one unit in its last place.

#pragma once

#include "../kernels.h"

namespace lpn {
namespace {

// a b + c, fused where the instruction set can: never a call of libm's fmaf.
inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

void adam_step_range(const AdamStep& op, int64_t begin, int64_t end) {
  float* __restrict__ parameter = op.parameter;
  const float* __restrict__ gradient = op.gradient;
  float* __restrict__ exp_avg = op.exp_avg;
  float* __restrict__ exp_avg_sq = op.exp_avg_sq;
  const float rest1 = op.rest1, beta2 = op.beta2, rest2 = op.rest2;
  const float step_size = op.step_size, root = op.root, eps = op.eps;
  const bool from_average = rest1 < 0.5f;  // torch's lerp starts from the nearer end
  const float weight = from_average ? rest1 : rest1 - 1.0f;
  const float low = op.nonnegative ? 0.0f : -__builtin_inff();
  for (int64_t i = begin; i < end; ++i) {
    const float g = gradient[i];
    const float m = multiply_add(weight, g - exp_avg[i], from_average ? exp_avg[i] : g);
    const float v = multiply_add(rest2 * g, g, exp_avg_sq[i] * beta2);
    const float p = parameter[i] + step_size * m / (__builtin_sqrtf(v) / root + eps);
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    parameter[i] = p < low ? low : p;  // NaN passes
  }
}

}  // namespace
}  // namespace lpn
