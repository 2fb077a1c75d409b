// Rows along lanes and back:  to[j, i] = from[i, j].
//
// The network's tensors keep a sample's values together; the sweeps need the same unit of many samples
// together.

#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#include <stdint.h>

namespace lpn {
namespace {

typedef float Quad __attribute__((vector_size(16)));
typedef float LooseQuad __attribute__((vector_size(16), aligned(4), may_alias));

// 4 x 4: two rounds of interleaving, 8 shuffles for 16 elements.
inline void transpose_quad(const float* from,    // [4, from_stride]
                           int64_t from_stride,  //
                           float* to,            // [4, to_stride]
                           int64_t to_stride) {
  const Quad a = *reinterpret_cast<const LooseQuad*>(from);
  const Quad b = *reinterpret_cast<const LooseQuad*>(from + from_stride);
  const Quad c = *reinterpret_cast<const LooseQuad*>(from + 2 * from_stride);
  const Quad d = *reinterpret_cast<const LooseQuad*>(from + 3 * from_stride);
  const Quad ac_low = {a[0], c[0], a[1], c[1]};
  const Quad ac_high = {a[2], c[2], a[3], c[3]};
  const Quad bd_low = {b[0], d[0], b[1], d[1]};
  const Quad bd_high = {b[2], d[2], b[3], d[3]};
  const Quad row_0 = {ac_low[0], bd_low[0], ac_low[1], bd_low[1]};
  const Quad row_1 = {ac_low[2], bd_low[2], ac_low[3], bd_low[3]};
  const Quad row_2 = {ac_high[0], bd_high[0], ac_high[1], bd_high[1]};
  const Quad row_3 = {ac_high[2], bd_high[2], ac_high[3], bd_high[3]};
  *reinterpret_cast<LooseQuad*>(to) = row_0;
  *reinterpret_cast<LooseQuad*>(to + to_stride) = row_1;
  *reinterpret_cast<LooseQuad*>(to + 2 * to_stride) = row_2;
  *reinterpret_cast<LooseQuad*>(to + 3 * to_stride) = row_3;
}

#if defined(__AVX512F__)
// 16 x 16: rows in pairs, pairs in fours, then blocks of four lanes; 64 shuffles for 256 elements.
inline void transpose_sixteen(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  // from: [16, from_stride], to: [16, to_stride]
  __m512 a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + i * from_stride);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {  // a[i + c]: column c of every four lanes, of rows i to i + 3
      const __m512d low = _mm512_castps_pd(b[i + j]), high = _mm512_castps_pd(b[i + j + 2]);
      a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  for (int c = 0; c < 4; ++c) {
    const __m512 even_upper = _mm512_shuffle_f32x4(a[c], a[c + 4], 0x88);
    const __m512 odd_upper = _mm512_shuffle_f32x4(a[c], a[c + 4], 0xdd);
    const __m512 even_lower = _mm512_shuffle_f32x4(a[c + 8], a[c + 12], 0x88);
    const __m512 odd_lower = _mm512_shuffle_f32x4(a[c + 8], a[c + 12], 0xdd);
    _mm512_storeu_ps(to + c * to_stride, _mm512_shuffle_f32x4(even_upper, even_lower, 0x88));
    _mm512_storeu_ps(to + (c + 4) * to_stride, _mm512_shuffle_f32x4(odd_upper, odd_lower, 0x88));
    _mm512_storeu_ps(to + (c + 8) * to_stride, _mm512_shuffle_f32x4(even_upper, even_lower, 0xdd));
    _mm512_storeu_ps(to + (c + 12) * to_stride, _mm512_shuffle_f32x4(odd_upper, odd_lower, 0xdd));
  }
}
#endif

void transpose(const float* from,    // [rows, from_stride], the first `columns` of each row count
               int64_t from_stride,  //
               float* to,            // [columns, to_stride]
               int64_t to_stride,    //
               int64_t rows,
               int64_t columns) {
#if defined(__AVX512F__)
  if (rows % 16 == 0 && columns % 16 == 0) {
    for (int64_t j = 0; j < columns; j += 16)
      for (int64_t i = 0; i < rows; i += 16)
        transpose_sixteen(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
    return;
  }
#endif
  const int64_t whole_rows = rows - rows % 4;
  const int64_t whole_columns = columns - columns % 4;
  for (int64_t j = 0; j < whole_columns; j += 4)
    for (int64_t i = 0; i < whole_rows; i += 4)
      transpose_quad(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
  for (int64_t j = 0; j < columns; ++j)
    for (int64_t i = j < whole_columns ? whole_rows : 0; i < rows; ++i)
      to[j * to_stride + i] = from[i * from_stride + j];
}

}  // namespace
}  // namespace lpn
