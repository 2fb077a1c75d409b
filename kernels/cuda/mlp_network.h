// The network as the sweeps see it: packed weights, in shared memory where they fit, and products with them.
//
// A team of warps owns 16 `row_tiles` rows; its warps take the columns of a product in turn, in chunks of
// 8 `column_tiles`. What a row keeps in shared memory decides how many rows a processor holds, so the team is
// what decides how many warps it can switch between. Per 16 rows, 16 deep and 8 wide one mma needs 256 B of
// weights, shared by the row tiles: two of them keep the 128 B per cycle of shared memory from being the
// limit, where there are rows enough.

#pragma once

#include "mlp.h"
#include "mlp_pack.h"
#include "numbers.h"

namespace lpn {

template <class Number_, int row_tiles_, int column_tiles_, bool resident_, int team_ = 1, int tiles_ = 0>
struct Config {
  using Number = Number_;
  static constexpr int row_tiles = row_tiles_;
  static constexpr int column_tiles = column_tiles_;
  static constexpr bool resident = resident_;  // weights in shared memory; else read through the caches
  static constexpr int team = team_;           // warps that own the same rows
  static constexpr int tiles = tiles_;         // H / 8 where the compiler knows it, else 0
  static constexpr int rows = 16 * row_tiles_;
  // Steps of the depth that are unrolled; all of them up to H = 64 in 16 bits. With any width 32 bits have no
  // registers for two.
  static constexpr int steps = tiles_ / Number_::k_tiles;
  static constexpr int unrolled = tiles_ == 0 ? Number_::k_tiles : steps < 4 ? steps : steps % 4 == 0 ? 4 : 3;
};

// Barrier of the warps that own the same rows.
template <class K>
LPN_DEVICE void sync_team() {
  if constexpr (K::team == 1)
    simt::sync_warp();
  else
    simt::sync_team<K::team>(simt::warp() / K::team);
}

constexpr int input_column_tiles = 2;  // chunk of products whose columns are entries of x

// A matrix B of a product as blocks: block (n, k) at first + n n_stride + k k_stride.
template <class Element>
struct Blocks {
  const Element* first;
  int n_stride, k_stride;  // in blocks

  LPN_DEVICE Blocks from_column(int n) const {
    return {first + n * n_stride * block_elements, n_stride, k_stride};
  }
};

template <class K>
struct Network {
  using Number = typename K::Number;
  using Element = typename Number::Element;

  const Element* weights;     // [PackedLayout blocks]
  const Element* transposed;  // the same transposed; resident weights are transposed as they are read
  const float* vectors;       // [stages, 3, H]: kappa b, w / E, 2 g / (kappa E)
  const StageScale* scales;   // [stages]
  PackedLayout layout;

  LPN_DEVICE int tiles() const {
    if constexpr (K::tiles > 0) return K::tiles;
    return layout.tiles;
  }
  LPN_DEVICE const float* vector(int l, int which) const {
    return vectors + (3 * l + which) * tiles() * block_side;
  }
  LPN_DEVICE const float* bias(int l) const { return vector(l, 0); }
  LPN_DEVICE const float* head(int l) const { return vector(l, 1); }
  LPN_DEVICE const float* head_sq(int l) const { return vector(l, 2); }

  // W_l^T and A_l^T as right factors of  z W_l^T,  x A_l^T
  LPN_DEVICE Blocks<Element> core(int l) const { return blocks(weights, layout.core_at(l), tiles(), 1); }
  LPN_DEVICE Blocks<Element> skip(int l) const {
    return blocks(weights, layout.skip_at(l), layout.dim_tiles, 1);
  }
  // W_l and A_l as right factors of  e W_l,  e A_l
  LPN_DEVICE Blocks<Element> core_back(int l) const {
    if constexpr (K::resident) return blocks(weights, layout.core_at(l), 1, tiles());
    return blocks(transposed, layout.core_at(l), tiles(), 1);
  }
  LPN_DEVICE Blocks<Element> skip_back(int l) const {
    if constexpr (K::resident) return blocks(weights, layout.skip_at(l), 1, layout.dim_tiles);
    return blocks(transposed, layout.skip_at(l), tiles(), 1);
  }

 private:
  LPN_DEVICE static Blocks<Element> blocks(const Element* base, int at, int n_stride, int k_stride) {
    return {base + static_cast<int64_t>(at) * block_elements, n_stride, k_stride};
  }
};

// d += operand B for the rows of the warp; operand [row_tiles][k_count][2] blocks. `backward`: B is read
// transposed where it is resident. Mma multiplies; it may be coarser than what is stored.
template <class K, bool backward, class Mma = typename K::Number, int columns>
LPN_DEVICE void product(float (&d)[K::row_tiles][columns][4],
                        const typename K::Number::Element* operand,
                        int k_count,
                        Blocks<typename K::Number::Element> b) {
  using Number = typename K::Number;
  using Word = typename Number::Word;
  constexpr int k_tiles = Number::k_tiles;
#pragma unroll K::unrolled
  for (int k = 0; k < k_count; k += k_tiles) {
    typename Mma::Operand a[K::row_tiles];
#pragma unroll
    for (int r = 0; r < K::row_tiles; ++r)
      a[r] = Mma::template load_operand<false>(operand + (r * k_count + k) * 2 * block_elements, 1, 2);
#pragma unroll
    for (int n = 0; n < columns; n += 2) {
      const auto* at = b.first + (n * b.n_stride + k * b.k_stride) * block_elements;
      Word pair[2][k_tiles];
      if constexpr (K::resident) {
        Number::template load_pair<backward>(pair, at, b.n_stride, b.k_stride);
      } else {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int j = 0; j < k_tiles; ++j)
            pair[i][j] = simt::constant_load(
                reinterpret_cast<const Word*>(at + (i * b.n_stride + j * b.k_stride) * block_elements) +
                Number::word_index(simt::lane()));
      }
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int r = 0; r < K::row_tiles; ++r) Mma::multiply(d[r][n + i], a[r], pair[i]);
    }
  }
}

// E_l bounds |e_l|, entry by entry, up to a factor of two and up to z in squared heads.
LPN_DEVICE void stage_scales(StageScale* scales, const StageRange* ranges, int stages) {
  float above = 0.0f;  // bound from stage l + 1
  for (int l = stages - 1; l >= 0; --l) {
    const float size = power_of_two(larger(above, ranges[l].head));
    scales[l].forward = ranges[l].forward;
    scales[l].size = size;
    scales[l].ratio = l + 1 < stages ? scales[l + 1].size / size : 0.0f;
    scales[l].backward = 0.0f;
    if (l + 1 < stages) scales[l + 1].backward = ranges[l + 1].forward * scales[l].ratio;
    above = ranges[l].column_sum * size;
  }
}

// Brings the network into shared memory. All threads of the block; ends with a barrier.
template <class K>
LPN_DEVICE Network<K> load_network(const MlpCall& call, unsigned char* shared) {
  using Element = typename K::Number::Element;
  const MlpProblem& problem = call.problem;
  const PackedLayout layout{problem.tiles, problem.dim_tiles, problem.stage_count,
                            static_cast<int32_t>(sizeof(Element))};
  const int64_t weight_bytes = K::resident ? layout.weight_bytes() : 0;
  float* vectors = reinterpret_cast<float*>(shared + weight_bytes);
  StageScale* scales = reinterpret_cast<StageScale*>(shared + weight_bytes + layout.vector_bytes());

  for (int64_t i = simt::thread() * 16; i < weight_bytes; i += simt::threads() * 16)
    simt::copy16(shared + i, call.packed + i);
  const unsigned char* packed_vectors = call.packed + layout.vectors_at(!K::resident);
  for (int64_t i = simt::thread() * 16; i < layout.vector_bytes(); i += simt::threads() * 16)
    simt::copy16(reinterpret_cast<unsigned char*>(vectors) + i, packed_vectors + i);
  if (simt::thread() == 0)
    stage_scales(scales, reinterpret_cast<const StageRange*>(call.packed + layout.ranges_at(!K::resident)),
                 problem.stage_count);
  simt::wait_copies();
  simt::sync_block();

  const int padded = problem.tiles * block_side;
  for (int i = simt::thread(); i < problem.stage_count * 2 * padded; i += simt::threads()) {
    const int l = i / (2 * padded);
    vectors[(3 * l + 1) * padded + i % (2 * padded)] /= scales[l].size;
  }
  simt::sync_block();
  const auto* weights = reinterpret_cast<const Element*>(K::resident ? shared : call.packed);
  return {weights, weights + layout.weight_bytes() / static_cast<int64_t>(sizeof(Element)), vectors, scales,
          layout};
}

}  // namespace lpn
