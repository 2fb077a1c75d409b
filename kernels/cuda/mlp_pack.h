// P -> what the sweeps read: rounded once, in blocks, kappa folded in, powers of two taken out.
//
//   stored W_l = round(2^-a W_l)     stored A_l = round(kappa A_l)     kappa b_l     w_l     2 g_l / kappa
//
// Rounding keeps W_l >= 0, so what is evaluated is an exact prox, of a network whose weights differ in the
// last bit kept. One block of threads per stage.

#pragma once

#include "mlp.h"
#include "numbers.h"

namespace lpn {

struct PackCall {
  MlpProblem problem;
  const float* __restrict__ parameters;  // P [parameter_count]
  unsigned char* __restrict__ packed;    // PackedLayout
  int32_t both;                          // whether the transposed blocks are needed too
};

constexpr int pack_threads = 256;

// The power of two in (value / 2, value], within 2^-100 .. 2^100; 1 for zero, infinity and NaN.
LPN_DEVICE float power_of_two(float value) {
  const uint32_t exponent = simt::as_bits(value) >> 23 & 255;
  if (!(value > 0.0f) || exponent == 255) return 1.0f;
  const uint32_t kept = exponent < 27 ? 27 : exponent > 227 ? 227 : exponent;
  return simt::as_float(kept << 23);
}

LPN_DEVICE float larger(float a, float b) { return b > a ? b : a; }

// The largest `value` of all threads; `scratch` [threads].
LPN_DEVICE float block_maximum(float value, float* scratch) {
  simt::sync_block();
  scratch[simt::thread()] = value;
  for (int half = simt::threads() / 2; half > 0; half /= 2) {
    simt::sync_block();
    if (simt::thread() < half)
      scratch[simt::thread()] = larger(scratch[simt::thread()], scratch[simt::thread() + half]);
  }
  simt::sync_block();
  return scratch[0];
}

// Blocks of a matrix [rows, columns] that is scale * source, zero beyond; of its transpose if asked.
template <class Number>
LPN_DEVICE void pack_blocks(typename Number::Element* to,  // [row_tiles, column_tiles] blocks
                            const float* source,           // [rows, columns] or nullptr: zeros
                            int rows,
                            int columns,
                            int row_tiles,
                            int column_tiles,
                            bool transposed,
                            float scale) {
  const int count = row_tiles * column_tiles * block_elements;
  for (int i = simt::thread(); i < count; i += simt::threads()) {
    const int tile = i / block_elements, inside = i % block_elements;
    const int first = inside / block_side, second = inside % block_side;
    int row = tile / column_tiles * block_side, column = tile % column_tiles * block_side;
    if (transposed) {  // the i-th block of the transposed matrix, and its element [first][second]
      row = tile % row_tiles * block_side + second;
      column = tile / row_tiles * block_side + first;
    } else {
      row += first;
      column += second;
    }
    const bool inside_matrix = source && row < rows && column < columns;
    const float value = inside_matrix ? scale * simt::constant_load(source + row * columns + column) : 0.0f;
    to[tile * block_elements + Number::position(first, second)] = Number::element(value);
  }
}

template <class Number>
LPN_DEVICE void pack(const PackCall& call, float* scratch) {  // scratch: [pack_threads]
  const MlpProblem& problem = call.problem;
  const int l = simt::block();
  const MlpStage& stage = problem.stages[l];
  const int below = l ? problem.stages[l - 1].width : 0;
  const PackedLayout layout{problem.tiles, problem.dim_tiles, problem.stage_count,
                            static_cast<int32_t>(sizeof(typename Number::Element))};
  const float kappa = problem.beta * log2_e;
  const auto at = [&](int offset) { return offset < 0 ? nullptr : call.parameters + offset; };

  StageRange range{1.0f, 0.0f, 0.0f, 0.0f};
  if (l) {
    const float* core = at(stage.core);  // [width, below]
    float largest = 0.0f, column_sum = 0.0f;
    for (int j = simt::thread(); j < below; j += simt::threads()) {
      float sum = 0.0f;
      for (int i = 0; i < stage.width; ++i) {
        const float value = simt::constant_load(core + i * below + j);
        largest = larger(largest, value);
        sum += value;
      }
      column_sum = larger(column_sum, sum);
    }
    range.forward = power_of_two(block_maximum(largest, scratch));
    range.column_sum = block_maximum(column_sum, scratch);
  }

  float* vectors = reinterpret_cast<float*>(call.packed + layout.vectors_at(call.both)) +
                   l * 3 * problem.tiles * block_side;
  const float* bias = at(stage.bias);
  const float* head = at(stage.head);
  const float* head_sq = at(stage.head_sq);
  const int padded = problem.tiles * block_side;
  float heads = 0.0f;
  for (int i = simt::thread(); i < padded; i += simt::threads()) {
    const bool real = i < stage.width;
    const float linear = real && head ? head[i] : 0.0f;
    const float squared = real && head_sq ? 2.0f * head_sq[i] / kappa : 0.0f;
    vectors[i] = real && bias ? kappa * bias[i] : 0.0f;
    vectors[padded + i] = linear;
    vectors[2 * padded + i] = squared;
    heads = larger(heads, larger(linear, squared));
  }
  range.head = block_maximum(heads, scratch);
  if (simt::thread() == 0)
    reinterpret_cast<StageRange*>(call.packed + layout.ranges_at(call.both))[l] = range;

  auto* blocks = reinterpret_cast<typename Number::Element*>(call.packed);
  for (int transposed = 0; transposed <= (call.both ? 1 : 0); ++transposed) {
    auto* to = blocks + (transposed ? layout.weight_bytes() / static_cast<int64_t>(sizeof *blocks) : 0);
    pack_blocks<Number>(to + layout.skip_at(l) * block_elements, at(stage.skip), stage.width, problem.dim,
                        problem.tiles, problem.dim_tiles, transposed, kappa);
    if (l)
      pack_blocks<Number>(to + layout.core_at(l) * block_elements, at(stage.core), stage.width, below,
                          problem.tiles, problem.tiles, transposed, 1.0f / range.forward);
  }
}

}  // namespace lpn
