// Gradient of  sum over rows of  p psi + <v, f>  with respect to x and to every parameter.
//
//   gx   = H v + p f
//   dW_l = e_l (x) dz_{l-1} + delta_l (x) z_{l-1};   dA_l = e_l (x) v + delta_l (x) x;   db_l = sum delta_l
//   dw_l = sum dz_l + p z_l;   dg_l = sum 2 z_l dz_l + p z_l^2;   dc = sum v + p x;   dc0 = sum p
//
// with delta_l holding p e_l (mlp_sweeps.h). 4F for the sweeps, which are the teams' own, and 2F for the
// gradients, which the warps of a block form together, each its own entries, from what all of them left in
// shared memory: (x) is a product whose depth is the rows. Terms with e and dz are added while the tangent
// passes, before the source of delta takes e's place; terms with delta on the way back. So a stage keeps two
// slots, not three, and rows keep their warps. A block adds its rows to its own partial gradient in device
// memory, every entry always the same lane; sum_partials adds the blocks in order. So nothing is atomic, and
// the result depends on the batch and the device alone.
//
// v and p of a block of rows are divided by one power of two before they become 16-bit numbers.

#pragma once

#include "mlp_prox.h"

namespace lpn {

template <class K>
struct Gradient {
  // Registers decide: 32-bit weights through the caches hold more of them, and 48 columns are three pairs of
  // tiles.
  static constexpr bool scarce = !K::resident && sizeof(typename K::Number::Element) == 4;
  static constexpr int column_tiles = scarce || K::tiles % 4 != 0 ? 2 : 4;
  using Number = typename K::Number;
  using Element = typename Number::Element;
  using Word = typename Number::Word;

  int slot_step,
      input_step;  // from the slots of a team to those of the next, and from input to input, in bytes
  float* partial;  // [parameter_count] of this block
  bool first;      // whether these are the block's first rows: nothing is there yet

  LPN_DEVICE void add(int at, float value, bool fresh) const {
    partial[at] = first && fresh ? value : partial[at] + value;
  }

  LPN_DEVICE static int teams() { return static_cast<int>(teams_of_block<K>()); }

  // Where a quantity of this team lies in the memory of another.
  LPN_DEVICE static const Element* of_team(int team, const Element* mine, int step) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(mine);
    return reinterpret_cast<const Element*>(bytes + (team - simt::warp() / K::team) * step);
  }
  LPN_DEVICE const Element* of_team(int team, const Element* mine) const {
    return of_team(team, mine, slot_step);
  }

  // d += a^T b over the rows of the block; a, b [row_tiles][tiles][2] blocks, at block columns i.. and j..
  template <int columns>
  LPN_DEVICE void outer(float (&d)[columns][4],
                        const Element* a,
                        int a_tiles,
                        int i,
                        const Element* b,
                        int b_tiles,
                        int j,
                        int b_step) const {
    constexpr int halves_at_once = Number::k_tiles;  // 8 rows each
    for (int team = 0; team < teams(); ++team)
#pragma unroll
      for (int r = 0; r < K::row_tiles; ++r)
#pragma unroll
        for (int half = 0; half < 2; half += halves_at_once) {
          const Element* from_a = of_team(team, a) + ((r * a_tiles + i) * 2 + half) * block_elements;
          const Element* from_b = of_team(team, b, b_step) + ((r * b_tiles + j) * 2 + half) * block_elements;
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

  // partial[at..] += scale a^T b, a matrix [rows, columns]; the warps share its tiles.
  template <int columns_at_once>
  LPN_DEVICE void matrix(int at,
                         int rows,
                         int columns,
                         float scale,
                         int a_tiles,
                         int b_tiles,
                         const Element* a,
                         const Element* b,
                         int b_step,
                         bool fresh) const {
    const int g = simt::lane() >> 2, t = simt::lane() & 3;
    const int chunks = b_tiles / columns_at_once;
    for (int piece = simt::warp(); piece < a_tiles / 2 * chunks; piece += simt::threads() / simt::lanes) {
      const int i = piece / chunks * 2, j = piece % chunks * columns_at_once;
      float d[columns_at_once][4];
#pragma unroll
      for (int n = 0; n < columns_at_once; ++n)
#pragma unroll
        for (int k = 0; k < 4; ++k) d[n][k] = 0.0f;
      outer(d, a, a_tiles, i, b, b_tiles, j, b_step);
#pragma unroll
      for (int n = 0; n < columns_at_once; ++n)
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int row = i * block_side + (k / 2) * 8 + g, column = (j + n) * block_side + 2 * t + k % 2;
          if (row < rows && column < columns) add(at + row * columns + column, scale * d[n][k], fresh);
        }
    }
  }

  // Calls body(element index in [row_tiles][tiles][2] blocks, team, row of the team) for every row of column
  // `unit`.
  template <class Body>
  LPN_DEVICE void down_the_rows(int tiles, int unit, Body body) const {
    for (int team = 0; team < teams(); ++team)
      for (int r = 0; r < K::row_tiles; ++r)
        for (int half = 0; half < 2; ++half)
          for (int row = 0; row < block_side; ++row)
            body(((r * tiles + unit / block_side) * 2 + half) * block_elements +
                     Number::position(row, unit % block_side),
                 team, r * 16 + half * 8 + row);
  }
};

// What the block's gradients of a network refer to.
template <class K>
struct GradientPass {
  using Number = typename K::Number;
  using Element = typename Number::Element;

  const MlpCall& call;
  const Sweeps<K, Operation::vjp>& rows;
  Gradient<K> gradient;
  const float* row_p;  // [rows of the block], p / size
  float size;          // what v and p were divided by

  LPN_DEVICE float kappa() const { return call.problem.beta * log2_e; }
  LPN_DEVICE float scale(int l) const { return rows.net.scales[l].size * size; }

  // a^T z or a^T dz of the stage below, and a^T of x or v, into dW_l and dA_l. All warps, after a barrier.
  LPN_DEVICE void weights(
      int l, const Element* a, const Element* below, const Element* input, bool fresh) const {
    const MlpStage& stage = call.problem.stages[l];
    const int tiles = rows.tiles();
    if (l)
      gradient.template matrix<Gradient<K>::column_tiles>(
          stage.core, stage.width, call.problem.stages[l - 1].width, scale(l) / kappa(), tiles, tiles, a,
          below, gradient.slot_step, fresh);
    if (stage.skip >= 0)
      gradient.template matrix<input_column_tiles>(stage.skip, stage.width, call.problem.dim, scale(l), tiles,
                                                   rows.dim_tiles(), a, input, gradient.input_step, fresh);
  }

  LPN_DEVICE void heads(int l) const {
    const MlpStage& stage = call.problem.stages[l];
    if (stage.head < 0 && stage.head_sq < 0) return;
    for (int unit = simt::thread(); unit < stage.width; unit += simt::threads()) {
      float head = 0.0f, head_sq = 0.0f;
      gradient.down_the_rows(rows.tiles(), unit, [&](int at, int team, int row) {
        const float z = Number::value(gradient.of_team(team, rows.z(l))[at]);
        const float dz = Number::value(gradient.of_team(team, rows.dz(l))[at]);
        const float p = row_p[team * K::rows + row];
        head += dz + p * z;
        head_sq += z * (2.0f * dz + p * z);
      });
      if (stage.head >= 0) gradient.add(stage.head + unit, size / kappa() * head, true);
      if (stage.head_sq >= 0) gradient.add(stage.head_sq + unit, size / (kappa() * kappa()) * head_sq, true);
    }
  }

  LPN_DEVICE void bias(int l) const {
    const MlpStage& stage = call.problem.stages[l];
    if (stage.bias < 0) return;
    for (int unit = simt::thread(); unit < stage.width; unit += simt::threads()) {
      float sum = 0.0f;
      gradient.down_the_rows(rows.tiles(), unit, [&](int at, int team, int) {
        sum += Number::value(gradient.of_team(team, rows.delta(l))[at]);
      });
      gradient.add(stage.bias + unit, scale(l) * sum, true);
    }
  }
};

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
    gradient.add(call.problem.linear + j, sum, true);
  }
  if (call.problem.constant >= 0 && j == simt::threads() - 1) {
    float sum = 0.0f;
    if (call.p)
      for (int64_t row = first; row < last; ++row) sum += call.p[row];
    gradient.add(call.problem.constant, sum, true);
  }
}

template <class K>
LPN_DEVICE void vjp(const MlpCall& call, unsigned char* shared) {
  const Network<K> net = load_network<K>(call, shared);
  const TeamLayout layout = layout_for<K>(Operation::vjp, call);
  const int warps = simt::threads() / simt::lanes, teams = Gradient<K>::teams(),
            team = simt::warp() / K::team;
  unsigned char* first_team = shared + shared_head_bytes(net.layout, K::resident);
  Sweeps<K, Operation::vjp> rows(net, layout, first_team + team * layout.bytes(),
                                 spilled_slots<K>(call, layout));
  using PerRow = typename decltype(rows)::PerRow;
  float* row_p = reinterpret_cast<float*>(first_team + teams * layout.bytes());
  float* largest = row_p + teams * K::rows;  // [warps]
  const float kappa = call.problem.beta * log2_e;
  const int dim = call.problem.dim;
  const int64_t block_rows = int64_t{K::rows} * teams;
  bool first = true;

  for (int64_t i = simt::block(); i * block_rows < call.rows; i += simt::blocks()) {
    rows.move_to(i * block_rows + team * K::rows, call.rows);

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

    if (rows.member() == 0)
      for (int row = simt::lane(); row < K::rows; row += simt::lanes) {
        const bool exists = call.p && row < rows.rows_here;
        row_p[team * K::rows + row] = exists ? call.p[rows.first_row + row] / size : 0.0f;
      }
    rows.sync();
    PerRow p, factor;
#pragma unroll
    for (int r = 0; r < K::row_tiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        p[r][half] = row_p[team * K::rows + r * 16 + half * 8 + (simt::lane() >> 2)];
        factor[r][half] = 1.0f / size;
      }
    const GradientPass<K> pass{
        call,
        rows,
        {layout.spilled ? static_cast<int>(layout.all_slots()) : layout.bytes(), layout.bytes(),
         call.partial + static_cast<int64_t>(simt::block()) * call.problem.parameter_count, first},
        row_p,
        size};

    evaluate_potential(call, rows);
    rows.prox();
    rows.load(rows.direction, call.v, dim, factor);
    for (int l = 0; l < rows.stages(); ++l) {
      simt::sync_block();
      pass.weights(l, rows.e(l), l ? rows.dz(l - 1) : nullptr, rows.direction, true);
      if (l) pass.heads(l - 1);
      simt::sync_block();  // e was read: the source of delta may take its place
      rows.tangent(l, p);
    }
    simt::sync_block();
    pass.heads(rows.stages() - 1);
    simt::sync_block();  // dz was read
    for (int l = rows.stages() - 1; l >= 0; --l) {
      rows.adjoint(l);
      simt::sync_block();  // delta turns between two slots, so this one is free again after the next barrier
      pass.weights(l, rows.delta(l), l ? rows.z(l - 1) : nullptr, rows.input, false);
      pass.bias(l);
    }
    const int64_t last = (i + 1) * block_rows;
    input_gradients(call, pass.gradient, i * block_rows, last < call.rows ? last : call.rows);
    first = false;

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
