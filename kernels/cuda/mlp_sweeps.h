// The four sweeps over the rows of one warp, in base 2 (primes), e and delta in units of E_l.
//
//   value     y_l = W_l z'_{l-1} + kappa A_l x + kappa b_l;         z'_l = softplus2(y_l)
//   prox      e_l = s_l (W_{l+1}^T e_{l+1} + w_l + 2 g_l z_l);       f = 1/kappa sum_l (kappa A_l)^T e_l +
//   ... tangent   dy_l = W_l dz'_{l-1} + kappa A_l v;                    dz'_l = s_l dy_l adjoint   delta_l =
//   s_l W_{l+1}^T delta_{l+1} + source_l
//             source_l = e_l (1 - s_l) ln2 dy_l + s_l (2 g_l (dz_l + p z_l) + p w_l)
//
// The source's first term is e sigma'' du; all of it is known when the tangent passes. delta holds p e_l
// besides what the tangent brings, so one adjoint sweep serves cotangents of f and of psi.

#pragma once

#include "mlp_rows.h"
#include "softplus.h"

namespace lpn {

template <class K, Operation operation, class Mma = typename K::Number>
struct Sweeps : Rows<K, operation> {
  using Base = Rows<K, operation>;
  using Number = typename K::Number;
  using Element = typename Number::Element;
  using PerRow = typename Base::PerRow;
  static constexpr int R = K::row_tiles;
  static constexpr int C = K::column_tiles;
  using Chunk = float[R][C][4];

  using Base::Base;
  using Base::net;
  using Base::stages;
  using Base::tiles;
  using Base::word;

  // z, and in psi, if asked for, this lane's part of  kappa (psi - the terms in x alone)
  LPN_DEVICE void value(bool with_value, PerRow& psi) const {
    for (int l = 0; l < stages(); ++l) {
      const float size = net.scales[l].size;
#pragma unroll 1
      for (int tile = first_column(); tile < tiles(); tile += column_step) {
        Chunk acc;
        forward<Number>(acc, l, tile, l ? this->z(l - 1) : nullptr, this->input, true);
        each_word(acc, tile, [&](float y0, float y1, int r, int n, int half) {
          const float z0 = softplus2<Number>(y0, (n - tile) % 2 == 0), z1 = softplus2<Number>(y1, false);
          word(this->z(l), r, n, half) = Number::make(z0, z1);
          if (with_value) {
            const FloatPair w = of_columns(net.head(l), n), g = of_columns(net.head_sq(l), n);
            psi[r][half] += size * (z0 * (w.low + 0.5f * g.low * z0) + z1 * (w.high + 0.5f * g.high * z1));
          }
        });
      }
      this->sync();
    }
  }

  // e, what the operation keeps for later, and the sum of f
  LPN_DEVICE void prox() const {
    constexpr bool keeps_curvature = operation == Operation::hvp || operation == Operation::solve;
    for (int l = stages() - 1; l >= 0; --l) {
#pragma unroll 1
      for (int tile = first_column(); tile < tiles(); tile += column_step) {
        Chunk acc;
        backward<Number>(acc, l, tile, l + 1 < stages() ? this->e(l + 1) : nullptr);
        each_word(acc, tile, [&](float a0, float a1, int r, int n, int half) {
          const FloatPair w = of_columns(net.head(l), n), g = of_columns(net.head_sq(l), n);
          float z0, z1;
          Number::values(word(this->z(l), r, n, half), z0, z1);
          const float s0 = slope<Number>(z0), s1 = slope<Number>(z1);
          const float e0 = s0 * (a0 + w.low + g.low * z0), e1 = s1 * (a1 + w.high + g.high * z1);
          word(this->e(l), r, n, half) = Number::make(e0, e1);
          if constexpr (keeps_curvature)
            word(this->curvature(l), r, n, half) =
                Number::make(e0 * ((1.0f - s0) * ln2), e1 * ((1.0f - s1) * ln2));
        });
      }
      this->sync();
      collect<Number>(l, this->e(l));
    }
    this->sync();
  }

  // dz of one stage, given dz of the one before, and the source of delta; p is the cotangent of psi, vjp only
  LPN_DEVICE void tangent(int l, const PerRow& p) const {
#pragma unroll 1
    for (int tile = first_column(); tile < tiles(); tile += column_step) {
      Chunk acc;
      forward<Mma>(acc, l, tile, l ? this->dz(l - 1) : nullptr, this->direction, false);
      each_word(acc, tile, [&](float dy0, float dy1, int r, int n, int half) {
        float z0, z1, c0, c1;
        Number::values(word(this->z(l), r, n, half), z0, z1);
        Number::values(word(this->curvature(l), r, n, half), c0, c1);
        const float s0 = slope<Number>(z0), s1 = slope<Number>(z1);
        const float dz0 = s0 * dy0, dz1 = s1 * dy1;
        word(this->dz(l), r, n, half) = Number::make(dz0, dz1);
        const FloatPair g = of_columns(net.head_sq(l), n);
        float head0 = g.low * dz0, head1 = g.high * dz1;
        if constexpr (operation == Operation::vjp) {  // what is kept there is e
          const FloatPair w = of_columns(net.head(l), n);
          c0 *= (1.0f - s0) * ln2;
          c1 *= (1.0f - s1) * ln2;
          head0 += p[r][half] * (w.low + g.low * z0);
          head1 += p[r][half] * (w.high + g.high * z1);
        }
        word(this->source(l), r, n, half) = Number::make(c0 * dy0 + s0 * head0, c1 * dy1 + s1 * head1);
      });
    }
    this->sync();
  }
  LPN_DEVICE void tangent() const {
    const PerRow none = {};
    for (int l = 0; l < stages(); ++l) tangent(l, none);
  }

  // delta of one stage, given delta of the next
  LPN_DEVICE void adjoint(int l) const {
#pragma unroll 1
    for (int tile = first_column(); tile < tiles(); tile += column_step) {
      Chunk acc;
      backward<Mma>(acc, l, tile, l + 1 < stages() ? this->delta(l + 1) : nullptr);
      each_word(acc, tile, [&](float a0, float a1, int r, int n, int half) {
        float z0, z1, source0, source1;
        Number::values(word(this->z(l), r, n, half), z0, z1);
        Number::values(word(this->source(l), r, n, half), source0, source1);
        const float delta0 = slope<Number>(z0) * a0 + source0, delta1 = slope<Number>(z1) * a1 + source1;
        word(this->delta(l), r, n, half) = Number::make(delta0, delta1);
      });
    }
    this->sync();
    collect<Mma>(l, this->delta(l));
  }

  // sums -> kappa times what they stand for
  LPN_DEVICE float unscaled(float sum) const { return sum * net.scales[0].size; }

 private:
  // Chunks of columns: of this warp of the team.
  static constexpr int column_step = C * K::team;
  LPN_DEVICE static int first_column() { return C * Base::member(); }

  // This lane's columns of a vector [H].
  LPN_DEVICE static FloatPair of_columns(const float* vector, int tile) {
    return reinterpret_cast<const FloatPair*>(vector + tile * block_side)[simt::lane() & 3];
  }

  // Calls body(pair, r, tile, half) for every word of a chunk.
  template <class Body>
  LPN_DEVICE static void each_word(Chunk& acc, int first_tile, Body body) {
#pragma unroll
    for (int n = 0; n < C; ++n)
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          body(acc[r][n][2 * half], acc[r][n][2 * half + 1], r, first_tile + n, half);
  }

  template <int columns>
  LPN_DEVICE static void clear(float (&acc)[R][columns][4]) {
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int n = 0; n < columns; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[r][n][i] = 0.0f;
  }

  // acc = W_l lower + kappa A_l x, and the bias; the stored W_l is scaled back by the step that adds the bias
  template <class M>
  LPN_DEVICE void forward(
      Chunk& acc, int l, int tile, const Element* lower, const Element* x, bool with_bias) const {
    clear(acc);
    if (l) product<K, false, M>(acc, lower, tiles(), net.core(l).from_column(tile));
    const float scale = net.scales[l].forward;
#pragma unroll
    for (int n = 0; n < C; ++n) {
      const FloatPair b = with_bias ? of_columns(net.bias(l), tile + n) : FloatPair{0.0f, 0.0f};
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[r][n][i] = acc[r][n][i] * scale + (i & 1 ? b.high : b.low);
    }
    const int dim_tiles = this->dim_tiles();
    for (int part = 0; part < Number::input_parts; ++part)
      product<K, false, M>(acc, x + part * (R * dim_tiles * 2 * block_elements), dim_tiles,
                           net.skip(l).from_column(tile));
  }

  // acc = W_{l+1}^T upper
  template <class M>
  LPN_DEVICE void backward(Chunk& acc, int l, int tile, const Element* upper) const {
    clear(acc);
    if (l + 1 == stages()) return;
    product<K, true, M>(acc, upper, tiles(), net.core_back(l + 1).from_column(tile));
    const float scale = net.scales[l + 1].backward;
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int n = 0; n < C; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[r][n][i] *= scale;
  }

  // sums = (E_{l+1} / E_l) sums + (kappa A_l)^T values, from the last stage down
  template <class M>
  LPN_DEVICE void collect(int l, const Element* values) const {
    const float ratio = net.scales[l].ratio;
    for (int tile = 0; tile < this->dim_tiles(); tile += input_column_tiles) {
      if (!Base::mine(tile)) continue;
      float acc[R][input_column_tiles][4];
      clear(acc);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int n = 0; n < input_column_tiles; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            if (l + 1 < stages()) acc[r][n][i] = ratio * this->sum_at(r, tile + n)[i];
      product<K, true, M>(acc, values, tiles(), net.skip_back(l).from_column(tile));
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int n = 0; n < input_column_tiles; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) this->sum_at(r, tile + n)[i] = acc[r][n][i];
    }
  }
};

}  // namespace lpn
