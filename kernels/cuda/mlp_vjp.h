// Gradient of  sum over rows of  p psi + <v, f>  with respect to x and to every parameter.
//
//   gx   = H v + p f
//   dW_l = e_l (x) dz_{l-1} + delta_l (x) z_{l-1};   dA_l = e_l (x) v + delta_l (x) x;   db_l = sum delta_l
//   dw_l = sum dz_l + p z_l;   dg_l = sum 2 z_l dz_l + p z_l^2;   dc = sum v + p x;   dc0 = sum p
//
// with delta_l holding p e_l (mlp_sweeps.h). 4F for the sweeps, which are the warps' own, and 2F for the
// gradients, which the warps of a block form together, each its own entries, from what all of them left in
// shared memory: (x) is a product whose depth is the rows. A block adds its rows to its own partial gradient
// in device memory, every entry always the same lane; sum_partials adds the blocks in order. So nothing is
// atomic, and the result depends on the batch and the device alone.
//
// v and p of a block of rows are divided by one power of two before they become 16-bit numbers.

#pragma once

#include "mlp_prox.h"

namespace lpn {

constexpr int gradient_column_tiles = 4;

template <class K>
struct Gradient {
  using Number = typename K::Number;
  using Element = typename Number::Element;
  using Word = typename Number::Word;

  unsigned char* first_warp;  // memory of warp 0
  int warp_bytes;
  float* partial;  // [parameter_count] of this block
  bool first;      // whether anything is there already

  LPN_DEVICE void add(int at, float value) const { partial[at] = first ? value : partial[at] + value; }

  // Where a quantity of this warp lies in the memory of another.
  LPN_DEVICE const Element* of_warp(int warp, const Element* mine) const {
    const auto* bytes = reinterpret_cast<const unsigned char*>(mine);
    return reinterpret_cast<const Element*>(bytes + (warp - simt::warp()) * warp_bytes);
  }

  // d += a^T b over the rows of the block; a, b [row_tiles][tiles][2] blocks, at block columns i.. and j..
  template <int columns>
  LPN_DEVICE void outer(float (&d)[columns][4],
                        const Element* a,
                        int a_tiles,
                        int i,
                        const Element* b,
                        int b_tiles,
                        int j) const {
    constexpr int halves_at_once = Number::k_tiles;  // of 8 rows
    for (int warp = 0; warp < simt::threads() / simt::lanes; ++warp)
#pragma unroll
      for (int r = 0; r < K::row_tiles; ++r)
#pragma unroll
        for (int half = 0; half < 2; half += halves_at_once) {
          const Element* from_a = of_warp(warp, a) + ((r * a_tiles + i) * 2 + half) * block_elements;
          const Element* from_b = of_warp(warp, b) + ((r * b_tiles + j) * 2 + half) * block_elements;
          const auto operand = Number::template load_operand<true>(from_a, 2, 1);
#pragma unroll
          for (int n = 0; n < columns; n += 2) {
            Word pair[2][Number::k_tiles];
            Number::template load_pair<true>(pair, from_b + n * 2 * block_elements, 2, 1);
            Number::multiply(d[n], operand, pair[0]);
            Number::multiply(d[n + 1], operand, pair[1]);
          }
        }
  }

  // partial[at..] += scale (a1^T b1 + a2^T b2), a matrix [rows, columns]; the warps share its tiles.
  template <int columns_at_once>
  LPN_DEVICE void matrix(int at,
                         int rows,
                         int columns,
                         float scale,
                         int a_tiles,
                         int b_tiles,
                         const Element* a1,
                         const Element* b1,
                         const Element* a2,
                         const Element* b2) const {
    const int g = simt::lane() >> 2, t = simt::lane() & 3;
    const int chunks = b_tiles / columns_at_once;
    for (int piece = simt::warp(); piece < a_tiles / 2 * chunks; piece += simt::threads() / simt::lanes) {
      const int i = piece / chunks * 2, j = piece % chunks * columns_at_once;
      float d[columns_at_once][4];
#pragma unroll
      for (int n = 0; n < columns_at_once; ++n)
#pragma unroll
        for (int k = 0; k < 4; ++k) d[n][k] = 0.0f;
      outer(d, a1, a_tiles, i, b1, b_tiles, j);
      outer(d, a2, a_tiles, i, b2, b_tiles, j);
#pragma unroll
      for (int n = 0; n < columns_at_once; ++n)
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int row = i * block_side + (k / 2) * 8 + g, column = (j + n) * block_side + 2 * t + k % 2;
          if (row < rows && column < columns) add(at + row * columns + column, scale * d[n][k]);
        }
    }
  }

  // Calls body(element index in [row_tiles][tiles][2] blocks, warp, r, half, row in block) for every row of
  // column `unit`.
  template <class Body>
  LPN_DEVICE void down_the_rows(int tiles, int unit, Body body) const {
    for (int warp = 0; warp < simt::threads() / simt::lanes; ++warp)
      for (int r = 0; r < K::row_tiles; ++r)
        for (int half = 0; half < 2; ++half)
          for (int row = 0; row < block_side; ++row)
            body(((r * tiles + unit / block_side) * 2 + half) * block_elements +
                     Number::position(row, unit % block_side),
                 warp, r * 16 + half * 8 + row);
  }
};

// Gradients of one stage. All warps, after a barrier.
template <class K>
LPN_DEVICE void stage_gradients(const MlpCall& call,
                                const Sweeps<K, Operation::vjp>& rows,
                                const Gradient<K>& gradient,
                                const float* row_p,  // [rows of the block]
                                int l,
                                float size) {  // what v and p were divided by
  using Number = typename K::Number;
  using Element = typename Number::Element;
  const MlpStage& stage = call.problem.stages[l];
  const float kappa = call.problem.beta * log2_e;
  const float scale = rows.net.scales[l].size * size;
  const int tiles = rows.tiles();
  const Element* delta = rows.delta(l);
  if (l)
    gradient.template matrix<gradient_column_tiles>(stage.core, stage.width, call.problem.stages[l - 1].width,
                                                    scale / kappa, tiles, tiles, rows.e(l), rows.dz(l - 1),
                                                    delta, rows.z(l - 1));
  if (stage.skip >= 0)
    gradient.template matrix<input_column_tiles>(stage.skip, stage.width, call.problem.dim, scale, tiles,
                                                 rows.dim_tiles(), rows.e(l), rows.direction, delta,
                                                 rows.input);
  for (int unit = simt::thread(); unit < stage.width; unit += simt::threads()) {
    float bias = 0.0f, head = 0.0f, head_sq = 0.0f;
    const bool heads = stage.head >= 0 || stage.head_sq >= 0;
    gradient.down_the_rows(tiles, unit, [&](int at, int warp, int row) {
      bias += Number::value(gradient.of_warp(warp, delta)[at]);
      if (!heads) return;
      const float z = Number::value(gradient.of_warp(warp, rows.z(l))[at]);
      const float dz = Number::value(gradient.of_warp(warp, rows.dz(l))[at]);
      const float p = row_p[warp * K::rows + row];
      head += dz + p * z;
      head_sq += z * (2.0f * dz + p * z);
    });
    if (stage.bias >= 0) gradient.add(stage.bias + unit, scale * bias);
    if (stage.head >= 0) gradient.add(stage.head + unit, size / kappa * head);
    if (stage.head_sq >= 0) gradient.add(stage.head_sq + unit, size / (kappa * kappa) * head_sq);
  }
}

// dc and dc0 of the block's rows, from device memory.
template <class K>
LPN_DEVICE void input_gradients(const MlpCall& call,
                                const Gradient<K>& gradient,
                                int64_t first,
                                int64_t last) {
  const int dim = call.problem.dim;
  const int j = simt::thread();
  if (call.problem.linear >= 0 && j < dim) {
    float sum = 0.0f;
    for (int64_t row = first; row < last; ++row) {
      if (call.v) sum += call.v[row * dim + j];
      if (call.p) sum += call.p[row] * call.x[row * dim + j];
    }
    gradient.add(call.problem.linear + j, sum);
  }
  if (call.problem.constant >= 0 && j == simt::threads() - 1) {
    float sum = 0.0f;
    if (call.p)
      for (int64_t row = first; row < last; ++row) sum += call.p[row];
    gradient.add(call.problem.constant, sum);
  }
}

template <class K>
LPN_DEVICE void vjp(const MlpCall& call, unsigned char* shared) {
  const Network<K> net = load_network<K>(call, shared);
  const WarpLayout layout = layout_for<K>(Operation::vjp, call.problem);
  const int warps = simt::threads() / simt::lanes;
  unsigned char* first_warp = shared + shared_head_bytes(net.layout, K::resident);
  Sweeps<K, Operation::vjp> rows(net, layout, first_warp + simt::warp() * layout.bytes());
  using PerRow = typename decltype(rows)::PerRow;
  float* row_p = reinterpret_cast<float*>(first_warp + warps * layout.bytes());
  float* largest = row_p + warps * K::rows;
  const float kappa = call.problem.beta * log2_e;
  const int dim = call.problem.dim;
  const int64_t block_rows = int64_t{K::rows} * warps;
  Gradient<K> gradient{first_warp, layout.bytes(),
                       call.partial + static_cast<int64_t>(simt::block()) * call.problem.parameter_count,
                       true};

  for (int64_t i = simt::block(); i * block_rows < call.rows; i += simt::blocks()) {
    rows.move_to(i * block_rows + simt::warp() * K::rows, call.rows);

    // one power of two for the block
    float most = 0.0f;
    if (call.v)
      rows.each_entry(dim, [&](int64_t at, int, int, int, int, int) {
        most = larger(most, kappa * simt::as_float(simt::as_bits(call.v[at]) & 0x7fffffffu));
      });
    for (int row = simt::lane(); row < rows.rows_here; row += simt::lanes)
      if (call.p)
        most = larger(most, simt::as_float(simt::as_bits(call.p[rows.first_row + row]) & 0x7fffffffu));
    for (int mask = 1; mask < simt::lanes; mask *= 2) most = larger(most, simt::shuffle_xor(most, mask));
    simt::sync_block();  // the gradients of the rows before are done with what is overwritten from here on
    if (simt::lane() == 0) largest[simt::warp()] = most;
    simt::sync_block();
    for (int warp = 0; warp < warps; ++warp) most = larger(most, largest[warp]);
    const float size = power_of_two(most);

    for (int row = simt::lane(); row < K::rows; row += simt::lanes) {
      const bool exists = call.p && row < rows.rows_here;
      row_p[simt::warp() * K::rows + row] = exists ? call.p[rows.first_row + row] / size : 0.0f;
    }
    simt::sync_warp();
    PerRow p, factor;
#pragma unroll
    for (int r = 0; r < K::row_tiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        p[r][half] = row_p[simt::warp() * K::rows + r * 16 + half * 8 + (simt::lane() >> 2)];
        factor[r][half] = 1.0f / size;
      }

    evaluate_potential(call, rows);
    rows.prox();
    rows.load(rows.direction, call.v, dim, factor);
    rows.tangent();
    for (int l = rows.stages() - 1; l >= 0; --l) {
      rows.adjoint(l, p);
      simt::sync_block();  // delta turns between two slots, so this one is free again after the next barrier
      stage_gradients(call, rows, gradient, row_p, l, size);
    }
    const int64_t last = (i + 1) * block_rows;
    input_gradients(call, gradient, i * block_rows, last < call.rows ? last : call.rows);
    gradient.first = false;

    rows.each_entry(dim, [&](int64_t at, int column, int r, int tile, int half, int k) {
      float sum = rows.unscaled(rows.sum_at(r, tile)[2 * half + k]) / kappa * size;
      if (call.v) sum += call.problem.alpha * call.v[at];
      if (call.p) sum += p[r][half] * size * (linear_term(call, column) + call.problem.alpha * call.x[at]);
      call.hv[at] = sum;
    });
  }
}

struct SumCall {
  const float* __restrict__ partial;  // [blocks, count]
  float* __restrict__ total;          // [count]
  int32_t blocks;
  int32_t count;
};

// total = the partials in order; a thread per entry, zero for no blocks.
LPN_DEVICE void sum_partials(const SumCall& call) {
  const int stride = simt::blocks() * simt::threads();
  for (int i = simt::block() * simt::threads() + simt::thread(); i < call.count; i += stride) {
    double sum = 0.0;
    for (int block = 0; block < call.blocks; ++block)
      sum += call.partial[static_cast<int64_t>(block) * call.count + i];
    call.total[i] = static_cast<float>(sum);
  }
}

}  // namespace lpn
