// A last stage whose units compete for one output per row, as experts of a mixture do.
//
//   z = 1/beta log sum_j exp(beta u_j);   s_j = exp(beta (u_j - z)), slopes of z that add up to one: shares
//   dz = sum_j s_j du_j;                  delta_j = s_j p w + e_j beta (du_j - dz),   e_j = s_j w
//
// The sweeps are those of softplus (mlp_sweeps.h), with beta e (du - dz) in the place of e dz q. u goes from
// the product into the first cache and through three short loops: for the largest, which is taken off before
// any exponential, for the exponentials and their sum, for the shares. Experts of one row differ by rounding
// errors of eps |u|, which makes the relative error of a share: large energies cost digits.

#pragma once

#include "activation.h"
#include "product.h"

namespace lpn {
namespace {

// body(lane, like) over whole groups of vectors, then over single ones; like: zeros, as many as it may take.
template <class Body>
inline void for_each_group(int64_t row_lanes, Body body) {
  int64_t lane = 0;
  for (; lane + row_vectors * lanes <= row_lanes; lane += row_vectors * lanes)
    body(lane, Group<row_vectors>{});
  for (; lane < row_lanes; lane += lanes) body(lane, Group<1>{});
}

// shares = weight s, and z, of the units whose u is the product of the terms plus the bias.
inline void soft_maximum(const Mlp& mlp,
                         const MlpStage& stage,
                         const Term* terms,
                         int64_t term_count,
                         int64_t row_lanes,
                         float weight,
                         float* shares,  // [H_l, block_rows], u on the way
                         float* z) {     // [block_rows]
  const SoftplusRates rates(mlp.beta);
  product(terms, term_count, stage.width, row_lanes, [=](int64_t unit, int64_t lane, auto sum) {
    store(shares + unit * block_rows + lane, sum + value_or_zero(stage.bias, unit));
  });
  for_each_group(row_lanes, [&](int64_t lane, auto like) {
    float* first = shares + lane;
    auto largest = load(like, first);
    for (int64_t unit = 1; unit < stage.width; ++unit)
      largest =
          map(largest, load(like, first + unit * block_rows), [](Vec a, Vec b) { return larger_of(a, b); });
    auto sum = like;
    for (int64_t unit = 0; unit < stage.width; ++unit) {
      float* at = first + unit * block_rows;
      const auto power = power_of_two((largest - load(like, at)) * rates.exponent);
      sum = sum + power;
      store(at, power);
    }
    store(z + lane, largest + map(sum, [&](Vec x) { return log1p_of_product(x - 1.0f, mlp.beta, rates); }));
    const auto scale = map(sum, [=](Vec x) { return weight / x; });
    for (int64_t unit = 0; unit < stage.width; ++unit) {
      float* at = first + unit * block_rows;
      store(at, load(like, at) * scale);
    }
  });
}

// dz, and curvature = beta e (du - dz) from beta e, of the units whose du is the product of the terms; dz is
// kept in the first unit's place.
inline void soft_maximum_tangent(const MlpStage& stage,
                                 const Term* terms,
                                 int64_t term_count,
                                 const MlpBlock& block) {
  const int64_t at = stage.first_unit * block_rows;
  float* du = block.dz + at;
  product(terms, term_count, stage.width, block.row_lanes,
          [=](int64_t unit, int64_t lane, auto sum) { store(du + unit * block_rows + lane, sum); });
  for_each_group(block.row_lanes, [&](int64_t lane, auto like) {
    auto mean = like;
    for (int64_t i = lane; i < stage.width * block_rows; i += block_rows)
      mean = multiply_add(load(like, block.s + at + i), load(like, du + i), mean);
    for (int64_t i = lane; i < stage.width * block_rows; i += block_rows) {
      float* curvature = block.curvature + at + i;
      store(curvature, load(like, curvature) * (load(like, du + i) - mean));
    }
    store(du + lane, mean);
  });
}

}  // namespace
}  // namespace lpn
