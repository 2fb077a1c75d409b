// The one matrix product of the dense network, for all sweeps and for the weight gradients.
//
//   accumulator[unit, lane] = sum over terms, over k, of  weights[unit, k] * operand[k, lane]
//
// A tile is 6 units x row_vectors vectors. Weights are broadcast from where they lie, so they need neither
// packing nor padding, and the transposed sweep only swaps two strides. Per k a tile loads 6 scalars and
// row_vectors vectors for 6 row_vectors multiply-adds: 10 loads to 24 with AVX-512, well under the load
// ports. Several terms share one accumulator (core and skip; e x dz and delta x z), which then goes to the
// caller's finish(unit, lane, accumulators of that unit) while they are still in registers.

#pragma once

#include "../kernels.h"
#include "group.h"

namespace lpn {
namespace {

constexpr int tile_units = 6;

inline float value_or_zero(const float* from, int64_t at) { return from ? from[at] : 0.0f; }

template <int units, int vectors, class Finish>
inline void product_tile(const Term* terms, int64_t term_count, int64_t unit, int64_t lane, Finish finish) {
  Group<vectors> accumulator[units];
  for (int i = 0; i < units; ++i)
    for (int j = 0; j < vectors; ++j) accumulator[i].part[j] = Vec{};
  for (const Term* term = terms; term != terms + term_count; ++term) {
    const float* weights = term->weights + unit * term->unit_stride;
    const float* operand = term->operand + lane;
    for (int64_t k = 0; k < term->depth; ++k) {
      Vec values[vectors];
      for (int j = 0; j < vectors; ++j) values[j] = load(operand + j * lanes);
      for (int i = 0; i < units; ++i) {
        const Vec weight = broadcast(weights[i * term->unit_stride]);
        for (int j = 0; j < vectors; ++j) accumulator[i].part[j] += weight * values[j];
      }
      weights += term->depth_stride;
      operand += term->operand_stride;
    }
  }
  for (int i = 0; i < units; ++i) finish(unit + i, lane, accumulator[i]);
}

// All units of one lane range. 50 units become five groups of 6 and four of 5 instead of eight of 6 and one
// of 2: a tile of 2 would leave most of the accumulators, and so the latency of the multiply-adds, unused.
template <int vectors, int most_units = tile_units, class Finish>
inline void product_lanes(const Term* terms, int64_t term_count, int64_t units, int64_t lane, Finish finish) {
  const int64_t groups = (units + most_units - 1) / most_units;
  int64_t unit = 0;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t size = (units - unit + groups - group - 1) / (groups - group);
    switch (size) {
      case 1:
        product_tile<1, vectors>(terms, term_count, unit, lane, finish);
        break;
      case 2:
        product_tile<2, vectors>(terms, term_count, unit, lane, finish);
        break;
      case 3:
        product_tile<3, vectors>(terms, term_count, unit, lane, finish);
        break;
      case 4:
        product_tile<4, vectors>(terms, term_count, unit, lane, finish);
        break;
      case 5:
        product_tile<5, vectors>(terms, term_count, unit, lane, finish);
        break;
      case 6:
        product_tile<6, vectors>(terms, term_count, unit, lane, finish);
        break;
      default:
        product_tile<most_units, vectors>(terms, term_count, unit, lane, finish);
        break;
    }
    unit += size;
  }
}

// finish(unit, lane, accumulators), a Group of vectors from that lane on, for units x lane_count; lane_count
// is a multiple of `lanes`. Tiles are most_units x most_vectors at most.
template <int most_vectors = row_vectors, int most_units = tile_units, class Finish>
inline void product(const Term* terms, int64_t term_count, int64_t units, int64_t lane_count, Finish finish) {
  int64_t lane = 0;
  for (; lane + most_vectors * lanes <= lane_count; lane += most_vectors * lanes)
    product_lanes<most_vectors, most_units>(terms, term_count, units, lane, finish);
  // What is left goes in one piece too: a tile of one vector has too few accumulators to hide their latency.
  switch ((lane_count - lane) / lanes) {
    case 3:
      if constexpr (most_vectors > 3) product_lanes<3, most_units>(terms, term_count, units, lane, finish);
      break;
    case 2:
      if constexpr (most_vectors > 2) product_lanes<2, most_units>(terms, term_count, units, lane, finish);
      break;
    case 1:
      product_lanes<1, most_units>(terms, term_count, units, lane, finish);
      break;
  }
}

}  // namespace
}  // namespace lpn
