// Elementwise passes between convolutions, channels last, one read and one write per operand.
//
//   softplus    out = softplus_beta(u + skip + bias)
//   slope_mul   out = (a + head + 2 head_sq z) s                 e_l of the prox sweep;  s = 1 - exp(-beta z)
//   tangent     out = (a + b) s                                  dz_l
//   adjoint     out = (a + 2 head_sq dz) s + e dz q              delta_l;                q = beta /
//   expm1(beta z)
//   heads       sum of z (head + head_sq z)                      a stage's part of psi
//
// Tensors hold float or bfloat16, per-channel operands and what is computed float. About 40 instructions per
// vector against 8 to 20 bytes per element: memory bound from two threads on. Each element is read before it
// is written, so the output may be one of the inputs.

#pragma once

#include "../kernels.h"
#include "exponentials.h"

namespace lpn {
namespace {

// Calls body(element, channel, count) for every vector of rows [begin, end). Without per-channel operands a
// row boundary means nothing and the whole range is one long row, so that few channels cost no partial
// vectors.
template <class Body>
inline void for_each_vector(int64_t begin, int64_t end, int64_t channels, bool per_channel, Body body) {
  const int64_t row_count = per_channel ? end - begin : 1;
  const int64_t row_length = per_channel ? channels : (end - begin) * channels;
  for (int64_t row = 0; row < row_count; ++row) {
    const int64_t start = begin * channels + row * row_length;
    int64_t channel = 0;
    for (; channel + lanes <= row_length; channel += lanes) body(start + channel, channel, int64_t{lanes});
    if (channel < row_length) body(start + channel, channel, row_length - channel);
  }
}

template <class Value>
inline Vec load_or_zero(const Value* from, int64_t at, int64_t count) {  // from: [at + count] or nullptr
  return from ? load(from + at, count) : Vec{};
}

template <class Value>
void softplus_rows(const Softplus<Value>& op, int64_t begin, int64_t end) {
  const float inverse_beta = 1.0f / op.beta;
  const auto span = [&](int64_t first, int64_t last, const float* bias) {  // bias: [channels] or nullptr
    for_each_vector(
        first, last, op.channels, bias != nullptr, [&](int64_t i, int64_t channel, int64_t count) {
          const Vec u = load(op.u + i, count) + load_or_zero(op.skip, i, count);
          store(op.out + i, softplus(u + load_or_zero(bias, channel, count), op.beta, inverse_beta), count);
        });
  };
  if (!op.bias) return span(begin, end, nullptr);
  while (begin < end) {
    const int64_t group = begin / op.rows_per_bias;
    const int64_t group_end = (group + 1) * op.rows_per_bias;
    const int64_t last = end < group_end ? end : group_end;
    span(begin, last, op.bias + group * op.channels);
    begin = last;
  }
}

template <class Value>
void slope_mul_rows(const SlopeMul<Value>& op, int64_t begin, int64_t end) {
  const bool per_channel = op.head || op.head_sq;
  for_each_vector(begin, end, op.channels, per_channel, [&](int64_t i, int64_t channel, int64_t count) {
    const Vec z = load(op.z + i, count);
    Vec above = load_or_zero(op.a, i, count) + load_or_zero(op.head, channel, count);
    if (op.head_sq) above += 2.0f * load(op.head_sq + channel, count) * z;
    store(op.out + i, above * slope_from_z(z, op.beta).s, count);
  });
}

template <class Value>
void tangent_rows(const Tangent<Value>& op, int64_t begin, int64_t end) {
  for_each_vector(begin, end, op.channels, false, [&](int64_t i, int64_t, int64_t count) {
    const Vec du = load(op.a + i, count) + load_or_zero(op.b, i, count);
    store(op.out + i, du * slope_from_z(load(op.z + i, count), op.beta).s, count);
  });
}

template <class Value>
void adjoint_rows(const Adjoint<Value>& op, int64_t begin, int64_t end) {
  for_each_vector(begin, end, op.channels, op.head_sq, [&](int64_t i, int64_t channel, int64_t count) {
    const Vec z = load(op.z + i, count);
    const Vec e = load(op.e + i, count);
    const Vec dz = load(op.dz + i, count);
    const Slope slope = slope_from_z(z, op.beta);
    Vec above = load_or_zero(op.a, i, count);
    if (op.head_sq) above += 2.0f * load(op.head_sq + channel, count) * dz;
    // dz q first: it is du beta (1 - s), of ordinary size, while e dz underflows where s does.
    store(op.out + i, above * slope.s + e * (dz * curvature_ratio(slope, z, op.beta)), count);
  });
}

// Lanes add up a few numbers in float32 and go on in double: psi is compared with sums that nearly cancel it.
template <class Value>
double heads_rows(const Heads<Value>& op, int64_t begin, int64_t end) {
  typedef double WideVec __attribute__((vector_size(8 * lanes)));
  constexpr int64_t terms = 8;  // in a lane's float32 sum
  const int64_t whole = op.channels / lanes * lanes;
  const auto weighted = [&](const Value* z, int64_t c) {
    Vec weight = load_or_zero(op.head, c, lanes);
    if (op.head_sq) weight += load(op.head_sq + c) * load(z + c);
    return weight * load(z + c);
  };
  WideVec total{};
  double rest = 0.0;  // the channels beyond the last whole vector: scalars cost less than padding them
  for (int64_t row = begin; row < end; ++row) {
    const Value* z = op.z + row * op.channels;
    for (int64_t c = 0; c < whole;) {
      const int64_t stop = c + terms * lanes < whole ? c + terms * lanes : whole;
      Vec sum{};
      for (; c < stop; c += lanes) sum += weighted(z, c);
      total += __builtin_convertvector(sum, WideVec);
    }
    for (int64_t c = whole; c < op.channels; ++c)
      rest += widened(z[c]) *
              ((op.head ? op.head[c] : 0.0f) + (op.head_sq ? op.head_sq[c] * widened(z[c]) : 0.0f));
  }
  for (int lane = 0; lane < lanes; ++lane) rest += total[lane];
  return rest;
}

template <class Value>
constexpr ActivationKernels<Value> activation_kernels() {
  return {softplus_rows<Value>, slope_mul_rows<Value>, tangent_rows<Value>, adjoint_rows<Value>,
          heads_rows<Value>};
}

}  // namespace
}  // namespace lpn
