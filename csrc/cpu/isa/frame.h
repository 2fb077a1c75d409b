// psi and f = grad psi of a squared first stage under gates of single pixels, some rows of an image at a
// time.
//
//   c = K x,   z_1 = c^2,   u_l = W_l z_{l-1} + b_l,   z_l = softplus(u_l)                 l = 2..L
//   e_l = s_l (W_{l+1}^T e_{l+1} + w_l),   e_1 = 2 c (W_2^T e_2 + w_1);      f = K^T e_1,   psi = sum_l w_l .
//   z_l
//
// Only x is read and only sums for f are written. Of one row of coefficients c and e_1 are kept, 98 KB that
// stay in L2; of 64 pixels the rest. Pixels lie along vector lanes and weights are broadcast from where they
// lie in P, so all products are those of product.h, the correlations too, for whose shifts an operand is read
// shifted:
//
//   c[j]      = sum over (channel, i) of  K[j][channel][i][t] x[channel][row + i][. + t]      product over t
//   row i of K^T e, of a channel     = sum over t of  K[j][channel][i][t] e[j][. - t]         product over j
//
// Per pixel 2 (units channels kernel^2 + gates units) multiply-adds: 14,210 for 49 filters and 96 gates,
// against some 20 instructions for each gate. Of z_L only psi wants to know, and only its sum. Over pixels
// its logarithms have one weight, so one logarithm does for many of them, with two multiply-adds each:
//
//   sum_p log1p(E_p) = log1p(D),   1 + D = prod_p (1 + E_p),   D <- D + E (1 + D)             E = exp(-beta
//   |u|)
//
// where D keeps all digits of small E.

#pragma once

#include "../frame_kernels.h"
#include "activation.h"
#include "product.h"

namespace lpn {
namespace {

// Factors 1 + E <= 2 whose product float32 holds.
constexpr int64_t most_factors = 120;

// Tiles of the adjoint: a row of 7 x 7 filters at once. In two parts of 4 and 3 units, the shifted reads,
// most of which touch two cache lines, would take longer than the multiply-adds.
#if defined(__AVX512F__)
constexpr int adjoint_units = 7, adjoint_vectors = 3;
#else
constexpr int adjoint_units = tile_units, adjoint_vectors = row_vectors;
#endif

typedef double WideVec __attribute__((vector_size(8 * lanes)));

inline WideVec wide(Vec x) { return __builtin_convertvector(x, WideVec); }

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

// `activate` (activation.h) without z: what stages cost whose z nobody reads.
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

// psi of the rows that pass: float32 sums over the units of a pixel or some pixels of a unit, float64 beyond.
class FrameValue {
 public:
  FrameValue(const Frame& op, const SoftplusRates& rates, float* gates)
      : op_(op), rates_(rates), last_(op.gate_count ? op.gates + op.gate_count - 1 : nullptr), gates_(gates) {
    clear();
  }

  // Begins a tile of so many vectors, of which the first `pixels` lanes count.
  void start(int64_t vectors, int64_t pixels) {
    if (factors_ + vectors > most_factors) add_gates();
    factors_ += vectors;
    pixels_ = pixels < vectors * lanes ? pixels : vectors * lanes;
  }

  // heads . z of a tile; z: [units, frame_pixels]
  void add(const float* heads, const float* z, int64_t units) {
    for (int64_t lane = 0; heads && lane < pixels_; lane += lanes) {
      Vec sum{};
      for (int64_t i = 0; i < units; ++i) sum += heads[i] * load(z + i * frame_pixels + lane);
      total_ += wide(first_of(sum, pixels_ - lane));
    }
  }

  // softplus(u) of one gate of the last stage, taken apart.
  template <int count>
  void add_gate(int64_t unit, int64_t lane, const Group<count>& u, const Group<count>& decayed) {
    float* at = gates_ + unit * 2 * column_multiple;
    Vec linear = load(at), d = load(at + column_multiple);
    for (int i = 0; i < count; ++i) {
      const int64_t left = pixels_ - lane - i * lanes;
      linear += first_of(larger_of(0.0f, u.part[i]), left);
      const Vec e = first_of(decayed.part[i], left);
      d = e * (d + 1.0f) + d;
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
  void clear() {
    for (int64_t i = 0; last_ && i < last_->width * 2 * column_multiple; i += lanes) store(gates_ + i, Vec{});
    factors_ = 0;
  }

  void add_gates() {
    for (int64_t unit = 0; last_ && unit < last_->width; ++unit) {
      const float* at = gates_ + unit * 2 * column_multiple;
      const Vec sum = load(at) + log1p_of_product(load(at + column_multiple), op_.beta, rates_);
      total_ += wide(last_->head[unit] * sum);
    }
    clear();
  }

  const Frame& op_;
  const SoftplusRates& rates_;
  const FrameGates* last_;
  float* gates_;  // [gates of the last stage, 2, column_multiple]   sums of max(u, 0), and D
  int64_t factors_ = 0;
  int64_t pixels_ = 0;
  WideVec total_{};
};

// Rows `begin` to `end` + kernel - 2 of x with kernel - 1 zeros on every side.
inline void pad_rows(const Frame& op, const float* x, float* lines, int64_t begin, int64_t end) {
  const int64_t margin = op.kernel - 1;
  for (int64_t row = begin; row < end + margin; ++row) {
    const int64_t from = row - margin;
    for (int64_t channel = 0; channel < op.channels; ++channel, lines += op.line) {
      for (int64_t i = 0; i < op.line; ++i) lines[i] = 0.0f;
      if (from < 0 || from >= op.height) continue;
      const float* line = x + (channel * op.height + from) * op.width;
      for (int64_t i = 0; i < op.width; ++i) lines[margin + i] = line[i];
    }
  }
}

// c and c^2 of a tile, whose row of patches starts at `lines`.
template <bool with_value>
void frame_squares(const Frame& op,
                   const FrameScratch& scratch,
                   const float* lines,
                   int64_t at,
                   int64_t tile,
                   FrameValue& value) {
  const int64_t rows = op.channels * op.kernel, taps = rows * op.kernel;
  for (int64_t channel = 0, term = 0; channel < op.channels; ++channel)
    for (int64_t i = 0; i < op.kernel; ++i, ++term)
      scratch.terms[term] = {op.filters + term * op.kernel,
                             taps,
                             1,
                             lines + (i * op.channels + channel) * op.line + at,
                             1,
                             op.kernel};
  product(scratch.terms, rows, op.units, tile, [&](int64_t unit, int64_t lane, auto c) {
    const auto z = c * c;
    store(scratch.c + unit * op.line + at + lane, c);
    store(scratch.z + unit * frame_pixels + lane, z);
  });
  if (with_value) value.add(op.head, scratch.z, op.units);
}

// The gates of a tile upwards; of the last stage e instead of z and s.
template <bool with_value>
void frame_gates(const Frame& op,
                 const FrameScratch& scratch,
                 const SoftplusRates& rates,
                 int64_t image,
                 int64_t tile,
                 FrameValue& value) {
  const float* below = scratch.z;
  for (int64_t l = 0; l < op.gate_count; ++l) {
    const FrameGates& gates = op.gates[l];
    const float* bias = gates.bias ? gates.bias + image * gates.bias_step : nullptr;
    const int64_t first = gates.first_unit * frame_pixels;
    const bool last = l + 1 == op.gate_count;
    scratch.terms[0] = {gates.core, gates.below, 1, below, frame_pixels, gates.below};
    product(scratch.terms, 1, gates.width, tile, [&](int64_t unit, int64_t lane, auto sum) {
      const auto u = bias ? sum + bias[unit] : sum;
      const int64_t i = first + unit * frame_pixels + lane;
      if (last) {
        const auto slope = slopes(u, rates);
        store(scratch.e + i, slope.s * gates.head[unit]);
        if (with_value) value.add_gate(unit, lane, u, slope.decayed);
      } else {
        const auto active = activate(u, rates);
        store(scratch.gates_z + i, active.z);
        store(scratch.s + i, active.s);
      }
    });
    below = scratch.gates_z + first;
    if (with_value && !last) value.add(gates.head, below, gates.width);
  }
}

// e_1 of a tile in the place of c.
void frame_transposed(const Frame& op, const FrameScratch& scratch, int64_t at, int64_t tile) {
  for (int64_t l = op.gate_count - 1; l >= 0; --l) {
    const FrameGates& gates = op.gates[l];
    const float* upper = scratch.e + gates.first_unit * frame_pixels;
    scratch.terms[0] = {gates.core, 1, gates.below, upper, frame_pixels, gates.width};
    if (l) {
      const FrameGates& lower = op.gates[l - 1];
      const int64_t first = lower.first_unit * frame_pixels;
      product(scratch.terms, 1, gates.below, tile, [&](int64_t unit, int64_t lane, auto sum) {
        const int64_t i = first + unit * frame_pixels + lane;
        const auto above = lower.head ? sum + lower.head[unit] : sum;
        store(scratch.e + i, load(sum, scratch.s + i) * above);
      });
    } else {
      product(scratch.terms, 1, op.units, tile, [&](int64_t unit, int64_t lane, auto sum) {
        float* c = scratch.c + unit * op.line + at + lane;
        const auto above = op.head ? sum + op.head[unit] : sum;
        store(c, load(sum, c) * (above + above));
      });
    }
  }
  if (op.gate_count) return;
  for (int64_t unit = 0; unit < op.units; ++unit)
    for (int64_t lane = 0; lane < tile; lane += lanes) {
      float* c = scratch.c + unit * op.line + at + lane;
      store(c, load(c) * (op.head ? 2.0f * op.head[unit] : 0.0f));
    }
}

// sums += K^T of a row of e_1 in scratch.c; sums: [kernel, channels, sum_line]
void frame_adjoint(const Frame& op, const FrameScratch& scratch, float* sums) {
  for (int64_t t = 0; t < op.kernel; ++t)
    scratch.terms[t] = {
        op.filters + t, op.kernel, op.channels * op.kernel * op.kernel, scratch.c + op.kernel - 1 - t,
        op.line,        op.units};
  product<adjoint_vectors, adjoint_units>(scratch.terms, op.kernel, op.channels * op.kernel, op.sum_line,
                                          [&](int64_t unit, int64_t lane, auto sum) {
                                            const int64_t channel = unit / op.kernel, i = unit % op.kernel;
                                            float* to =
                                                sums + (i * op.channels + channel) * op.sum_line + lane;
                                            store(to, load(sum, to) + sum);
                                          });
}

template <bool with_value>
void frame_rows(
    const Frame& op, const FrameScratch& scratch, const FrameProx& io, int64_t begin, int64_t end) {
  const SoftplusRates rates(op.beta);
  FrameValue value(op, rates, scratch.sums);
  const int64_t sum_step = op.channels * op.sum_line, line_step = op.channels * op.line;
  for (int64_t i = 0; i < (end - begin + op.kernel - 1) * sum_step; ++i) io.sum[i] = 0.0f;
  pad_rows(op, io.x, scratch.lines, begin, end);
  const int64_t width = op.width + op.kernel - 1;
  const int64_t vectors = (width + lanes - 1) / lanes, most = frame_pixels / lanes;
  const int64_t tiles = (vectors + most - 1) / most;
  for (int64_t row = 0; row < end - begin; ++row) {
    for (int64_t i = 0; i < tiles; ++i) {  // of nearly equal size: a tile of one vector would wait for itself
      const int64_t first = i * vectors / tiles, count = (i + 1) * vectors / tiles - first;
      const int64_t at = first * lanes, tile = count * lanes;
      if (with_value) value.start(count, width - at);
      frame_squares<with_value>(op, scratch, scratch.lines + row * line_step, at, tile, value);
      frame_gates<with_value>(op, scratch, rates, io.image, tile, value);
      frame_transposed(op, scratch, at, tile);
    }
    frame_adjoint(op, scratch, io.sum + row * sum_step);
  }
  if (with_value) *io.psi = value.total();
}

void frame_prox(
    const Frame& op, const FrameScratch& scratch, const FrameProx& io, int64_t begin, int64_t end) {
  return io.psi ? frame_rows<true>(op, scratch, io, begin, end)
                : frame_rows<false>(op, scratch, io, begin, end);
}

}  // namespace
}  // namespace lpn
