// The rows a team owns: where their quantities lie, and how x, v, f come and go.
//
// A slot holds one quantity of one stage, [row_tiles][tiles][2 row halves] blocks. The lane that computes an
// entry of a product is the one whose operand word it is, so slots need the barrier of the team only. Which
// slots there are depends on the operation; what stands after "=" takes the place of what stands before:
//
//   prox    z = e
//   hvp     z, e (1 - s) ln2 = the source of delta;        e, dz, delta take turns in two
//   vjp     z, e = the source of delta;                    dz, delta take turns in two
//   solve   z, e (1 - s) ln2, the source of delta;         e, dz, delta take turns in two
//
// Entries of x belong to the warps of the team in turn, as columns do: `mine` says whose a tile of 8 is.

#pragma once

#include "mlp_network.h"

namespace lpn {

template <class K, Operation operation>
struct Rows {
  using Number = typename K::Number;
  using Element = typename Number::Element;
  using Word = typename Number::Word;
  static constexpr int R = K::row_tiles;
  static constexpr int C = K::column_tiles;
  static constexpr int team = K::team;
  // A value per row this lane holds columns of: row g + 8 half of row tile r at [r][half].
  using PerRow = float[R][2];

  const Network<K>& net;
  Element* slots;
  Element* input;      // x as an operand, [parts][row_tiles][dim_tiles][2] blocks
  Element* direction;  // v
  float* sums;         // [row_tiles][dim_tiles][32 lanes][4]: accumulators of a product whose columns are x's
  float* parts;        // [team][rows]: sums over the columns of each warp
  int rows_here;       // how many rows there are
  int64_t first_row;

  // `memory` is shared; so are the slots, unless they are given.
  LPN_DEVICE Rows(const Network<K>& network,
                  const TeamLayout& layout,
                  unsigned char* memory,
                  unsigned char* spilled)
      : net(network),
        slots(reinterpret_cast<Element*>(!K::resident && layout.spilled ? spilled : memory)),
        input(reinterpret_cast<Element*>(memory + layout.inputs_at())),
        direction(reinterpret_cast<Element*>(memory + layout.inputs_at() + layout.input_bytes)),
        sums(reinterpret_cast<float*>(memory + layout.sum_at())),
        parts(reinterpret_cast<float*>(memory + layout.parts_at())),
        rows_here(0),
        first_row(0) {}

  LPN_DEVICE void move_to(int64_t row, int64_t rows) {
    first_row = row;
    rows_here = rows - row < K::rows ? (rows > row ? static_cast<int>(rows - row) : 0) : K::rows;
  }

  LPN_DEVICE int stages() const { return net.layout.stages; }
  LPN_DEVICE int tiles() const { return net.tiles(); }
  LPN_DEVICE int dim_tiles() const { return net.layout.dim_tiles; }

  LPN_DEVICE static void sync() { sync_team<K>(); }
  LPN_DEVICE static int member() { return K::team == 1 ? 0 : simt::warp() % K::team; }
  LPN_DEVICE static bool mine(int dim_tile) {
    return K::team == 1 || dim_tile / input_column_tiles % K::team == member();
  }

  // ---- slots ----------------------------------------------------------------------------------------------

  LPN_DEVICE Element* slot(int index) const { return slots + index * (R * tiles() * 2 * block_elements); }
  LPN_DEVICE Element* turn(int l) const {
    return slot((operation == Operation::solve ? 3 : 2) * stages() + (l & 1));
  }
  LPN_DEVICE Element* z(int l) const { return slot(l); }
  LPN_DEVICE Element* e(int l) const {
    if constexpr (operation == Operation::prox) return z(l);
    if constexpr (operation == Operation::vjp) return slot(stages() + l);
    return turn(l);
  }
  LPN_DEVICE Element* curvature(int l) const { return slot(stages() + l); }
  LPN_DEVICE Element* source(int l) const {
    return operation == Operation::solve ? slot(2 * stages() + l) : curvature(l);
  }
  LPN_DEVICE Element* dz(int l) const { return turn(l); }
  LPN_DEVICE Element* delta(int l) const { return turn(l); }

  // This lane's word of block (r, tile, half): columns 2t, 2t + 1 of `tile`, row g + 8 half.
  LPN_DEVICE Word& word(Element* of_slot, int r, int tile, int half) const {
    return word_of(of_slot, tiles(), r, tile, half);
  }
  LPN_DEVICE static Word& word_of(Element* blocks, int tile_count, int r, int tile, int half) {
    return reinterpret_cast<Word*>(blocks + ((r * tile_count + tile) * 2 + half) *
                                                block_elements)[Number::word_index(simt::lane())];
  }
  LPN_DEVICE float* sum_at(int r, int tile) const {
    return sums + ((r * dim_tiles() + tile) * simt::lanes + simt::lane()) * 4;
  }

  // ---- rows in global memory ------------------------------------------------------------------------------

  // Calls body(index into [rows, dim], column, r, tile, half, which) for all entries of this lane that exist:
  // those that are its own, or of every tile.
  template <bool every = false, class Body>
  LPN_DEVICE void each_entry(int dim, Body body) const {
    const int g = simt::lane() >> 2, t = simt::lane() & 3;
    for (int tile = 0; tile < dim_tiles(); ++tile) {
      if (!every && !mine(tile)) continue;
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int row = r * 16 + half * 8 + g, column = tile * block_side + 2 * t + i;
            if (row < rows_here && column < dim)
              body((first_row + row) * dim + column, column, r, tile, half, i);
          }
    }
  }

  // from [rows, dim], times a factor per row, as the operand `to`; zero where there is nothing.
  LPN_DEVICE void load(Element* to, const float* from, int dim, const PerRow& factor) const {
    const int g = simt::lane() >> 2, t = simt::lane() & 3;
    const int part_elements = R * dim_tiles() * 2 * block_elements;
    sync();
    for (int tile = 0; tile < dim_tiles(); ++tile) {
      if (!mine(tile)) continue;
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = r * 16 + half * 8 + g, column = tile * block_side + 2 * t;
          const float* at = from + (first_row + row) * dim + column;
          const bool exists = from && row < rows_here;
          const float low = exists && column < dim ? factor[r][half] * at[0] : 0.0f;
          const float high = exists && column + 1 < dim ? factor[r][half] * at[1] : 0.0f;
          put(to, part_elements, r, tile, half, low, high);
        }
    }
    sync();
  }

  // A pair of entries as operand, split into parts.
  LPN_DEVICE void put(
      Element* to, int part_elements, int r, int tile, int half, float low, float high) const {
#pragma unroll
    for (int part = 0; part < Number::input_parts; ++part) {
      const Word rounded = Number::make(low, high);
      word_of(to + part * part_elements, dim_tiles(), r, tile, half) = rounded;
      float low_kept, high_kept;
      Number::values(rounded, low_kept, high_kept);
      low -= low_kept;
      high -= high_kept;
    }
  }

  // ---- sums along a row, from the parts of its four lanes -------------------------------------------------

  template <class T>
  LPN_DEVICE static T row_sum(T part) {
    part += simt::shuffle_xor(part, 1);
    return part + simt::shuffle_xor(part, 2);
  }
  LPN_DEVICE static float row_maximum(float part) {
    part = larger(part, simt::shuffle_xor(part, 1));
    return larger(part, simt::shuffle_xor(part, 2));
  }
};

}  // namespace lpn
