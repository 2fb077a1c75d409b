// How numbers are stored and multiplied: one struct per precision, all with the same members.
//
// Everything a warp multiplies lies in 8 x 8 blocks of 64 elements, weights and activations alike. A lane
// (g, t) reads from a block either its row pair [g][2t], [g][2t + 1] or, transposed, [2t][g], [2t + 1][g];
// such a pair is a Word. That one layout serves
//   forward    u = W z      B = W^T from W's blocks as they are       operand z as it is
//   backward   W^T e        B = W from the same blocks, transposed    operand e as it is
//   gradient   e (x) dz     operand and B transposed, the depth is the rows of the batch
// so both sweeps multiply by bit-identical weights, and the Hessian stays symmetric. The accumulator of one
// product has, lane by lane, the words of the next operand: activations never change lanes.
//
// 32-bit fragments require k = t and k = t + 4 where a Word has k = 2t and 2t + 1. A sum over k does not
// depend on its order, as long as both factors use the same one.

#pragma once

#include "simt.h"

namespace lpn {

constexpr int block_side = 8;
constexpr int block_elements = 64;

constexpr float ln2 = 0.693147180559945309f;
constexpr float log2_e = 1.44269504088896341f;

// ---- 16 bits: products of depth 16, sums in float32 -------------------------------------------------------

template <bool is_bf16>
struct Sixteen {
  using Element = uint16_t;
  using Word = uint32_t;
  static constexpr int k_tiles = 2;        // blocks along the depth of one product
  static constexpr int input_parts = 2;    // x = high + low: a prox that does not see its input rounded
  static constexpr bool accurate = false;  // whether softplus has to be better than 16 bits

  struct Operand {
    uint32_t words[4];  // block of row half m and depth k at m + 2 k
  };

  static LPN_DEVICE Word make(float low, float high) {
    return is_bf16 ? simt::pack_bf16(low, high) : simt::pack_f16(low, high);
  }
  static LPN_DEVICE void values(Word word, float& low, float& high) {
    if constexpr (is_bf16) {
      low = simt::as_float(word << 16);
      high = simt::as_float(word & 0xffff0000u);
    } else {
      simt::unpack_f16(word, low, high);
    }
  }
  static LPN_DEVICE Element element(float value) { return static_cast<Element>(make(value, 0.0f)); }
  static LPN_DEVICE float value(Element element) {
    float low, high;
    values(element, low, high);
    return low;
  }

  static LPN_DEVICE int position(int row, int column) { return row * block_side + column; }
  static LPN_DEVICE int word_index(int lane) { return lane; }

  // Blocks of row half m and depth k at base + (m m_stride + k k_stride) blocks.
  template <bool transposed>
  static LPN_DEVICE Operand load_operand(const Element* base, int m_stride, int k_stride) {
    const int lane = simt::lane(), m = lane >> 3 & 1, k = lane >> 4;
    Operand operand;
    simt::load_blocks<transposed>(
        operand.words, base + (m * m_stride + k * k_stride) * block_elements + (lane & 7) * block_side);
    return operand;
  }

  // Two column blocks n of depth k_tiles, at base + (n n_stride + k k_stride) blocks in shared memory.
  template <bool transposed>
  static LPN_DEVICE void load_pair(Word (&b)[2][2], const Element* base, int n_stride, int k_stride) {
    const int lane = simt::lane(), k = lane >> 3 & 1, n = lane >> 4;
    uint32_t words[4];
    simt::load_blocks<transposed>(
        words, base + (n * n_stride + k * k_stride) * block_elements + (lane & 7) * block_side);
    b[0][0] = words[0], b[0][1] = words[1], b[1][0] = words[2], b[1][1] = words[3];
  }

  static LPN_DEVICE void multiply(float (&d)[4], const Operand& a, const Word (&b)[2]) {
    if constexpr (is_bf16)
      simt::mma_bf16(d, a.words, b);
    else
      simt::mma_f16(d, a.words, b);
  }
};

using Fp16 = Sixteen<false>;
using Bf16 = Sixteen<true>;

// ---- 32 bits: products of depth 8 -------------------------------------------------------------------------

struct alignas(8) FloatPair {
  float low, high;
};

// Storage float32. Rows of a block are stored in the order r ^ (r >> 2): then neither the 8-byte reads of
// rows nor the 4-byte reads of columns meet twice in a bank.
struct ThirtyTwo {
  using Element = float;
  using Word = FloatPair;
  static constexpr int k_tiles = 1;

  static LPN_DEVICE int stored_row(int row) { return row ^ (row >> 2); }
  static LPN_DEVICE int position(int row, int column) { return stored_row(row) * block_side + column; }
  static LPN_DEVICE int word_index(int lane) { return stored_row(lane >> 2) * 4 + (lane & 3); }

  template <bool transposed>
  static LPN_DEVICE Word load(const Element* block) {
    const int lane = simt::lane(), g = lane >> 2, t = lane & 3;
    if constexpr (transposed) return {block[position(2 * t, g)], block[position(2 * t + 1, g)]};
    return reinterpret_cast<const Word*>(block)[word_index(lane)];
  }
  template <bool transposed>
  static LPN_DEVICE void load_pair(Word (&b)[2][1], const Element* base, int n_stride, int) {
    b[0][0] = load<transposed>(base);
    b[1][0] = load<transposed>(base + n_stride * block_elements);
  }
  static LPN_DEVICE void values(Word word, float& low, float& high) { low = word.low, high = word.high; }
  static LPN_DEVICE float value(Element element) { return element; }
};

// Everything rounded to TF32 where it is stored.
struct Tf32 : ThirtyTwo {
  static constexpr int input_parts = 2;
  static constexpr bool accurate = false;

  struct Operand {
    float values[4];
  };

  static LPN_DEVICE Word make(float low, float high) {
    return {simt::round_tf32(low), simt::round_tf32(high)};
  }
  static LPN_DEVICE Element element(float value) { return simt::round_tf32(value); }

  template <bool transposed>
  static LPN_DEVICE Operand load_operand(const Element* base, int m_stride, int) {
    const Word top = load<transposed>(base), bottom = load<transposed>(base + m_stride * block_elements);
    return {{top.low, bottom.low, top.high, bottom.high}};
  }
  static LPN_DEVICE void multiply(float (&d)[4], const Operand& a, const Word (&b)[1]) {
    const float pair[2] = {b[0].low, b[0].high};
    simt::mma_tf32(d, a.values, pair);
  }
};

// a b = ah bh + ah bl + al bh + O(2^-22),  ah, al = the TF32 numbers nearest to a and a - ah.
struct Fp32 : ThirtyTwo {
  static constexpr int input_parts = 1;
  static constexpr bool accurate = true;

  struct Operand {
    float high[4], low[4];
  };

  static LPN_DEVICE Word make(float low, float high) { return {low, high}; }
  static LPN_DEVICE Element element(float value) { return value; }

  template <bool transposed>
  static LPN_DEVICE Operand load_operand(const Element* base, int m_stride, int) {
    const Word top = load<transposed>(base), bottom = load<transposed>(base + m_stride * block_elements);
    const float values[4] = {top.low, bottom.low, top.high, bottom.high};
    Operand operand;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      operand.high[i] = simt::round_tf32(values[i]);
      operand.low[i] = simt::round_tf32(values[i] - operand.high[i]);
    }
    return operand;
  }
  static LPN_DEVICE void multiply(float (&d)[4], const Operand& a, const Word (&b)[1]) {
    const float high[2] = {simt::round_tf32(b[0].low), simt::round_tf32(b[0].high)};
    const float low[2] = {simt::round_tf32(b[0].low - high[0]), simt::round_tf32(b[0].high - high[1])};
    simt::mma_tf32(d, a.low, high);  // small terms first
    simt::mma_tf32(d, a.high, low);
    simt::mma_tf32(d, a.high, high);
  }
};

// What Fp32 stores, multiplied once in TF32: a third of the products, three digits, for inner iterations.
struct Fp32Once : Fp32 {
  using Operand = Tf32::Operand;

  template <bool transposed>
  static LPN_DEVICE Operand load_operand(const Element* base, int m_stride, int k_stride) {
    Operand operand = Tf32::load_operand<transposed>(base, m_stride, k_stride);
#pragma unroll
    for (int i = 0; i < 4; ++i) operand.values[i] = simt::round_tf32(operand.values[i]);
    return operand;
  }
  static LPN_DEVICE void multiply(float (&d)[4], const Operand& a, const Word (&b)[1]) {
    const Word rounded[1] = {Tf32::make(b[0].low, b[0].high)};
    Tf32::multiply(d, a, rounded);
  }
};

}  // namespace lpn
