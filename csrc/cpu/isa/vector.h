// Lanes of float32: the widest vector that the flags of the including unit allow, through GCC vector
// extensions.
//
// Everything in isa/ lives in an unnamed namespace. Internal linkage keeps each unit's code to itself: no
// template instance or inline function can be merged with the twin of another instruction set.

#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#include <stdint.h>

#include "../kernels.h"

namespace lpn {
namespace {

#if defined(__AVX512F__)
constexpr int lanes = 16;
constexpr int row_vectors = 4;  // 6 x 4 accumulators + 4 operands + 1 weight = 29 of 32 registers
#elif defined(__AVX2__)
constexpr int lanes = 8;
constexpr int row_vectors = 2;  // 6 x 2 accumulators + 2 operands + 1 weight = 15 of 16 registers
#else
constexpr int lanes = 4;
constexpr int row_vectors = 2;
#endif

typedef float Vec __attribute__((vector_size(4 * lanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * lanes)));
// The same lanes at any float address.
typedef float LooseVec __attribute__((vector_size(4 * lanes), aligned(4), may_alias));

// x - 0 is x, -0 included, so this is one instruction; 0 + x would be an addition too.
inline Vec broadcast(float value) { return value - Vec{}; }

inline Vec load(const float* from) { return *reinterpret_cast<const LooseVec*>(from); }  // [lanes]

inline void store(float* to, Vec value) { *reinterpret_cast<LooseVec*>(to) = value; }  // [lanes]

#if defined(__AVX512F__)
inline __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
#endif

// The first `count` lanes; the others are zero. With a literal count = lanes this is a plain load.
inline Vec load(const float* from, int64_t count) {  // from: [count]
  if (count == lanes) return load(from);
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(first_lanes(count), from);
#endif
  float padded[lanes] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = from[i];
  return load(padded);
}

inline void store(float* to, Vec value, int64_t count) {  // to: [count]
  if (count == lanes) return store(to, value);
#if defined(__AVX512F__)
  return _mm512_mask_storeu_ps(to, first_lanes(count), value);
#endif
  float padded[lanes];
  store(padded, value);
  for (int64_t i = 0; i < count; ++i) to[i] = padded[i];
}

// ---- bfloat16: the upper half of a float ------------------------------------------------------------------

typedef uint16_t HalfVec __attribute__((vector_size(2 * lanes)));
typedef uint32_t WordVec __attribute__((vector_size(4 * lanes)));
typedef uint16_t LooseHalfVec __attribute__((vector_size(2 * lanes), aligned(2), may_alias));

// What the compiler makes of a conversion between lanes of 16 and of 32 bits is several shuffles.
inline WordVec words_of(HalfVec bits) {
#if defined(__AVX512F__)
  return reinterpret_cast<WordVec>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(bits)));
#elif defined(__AVX2__)
  return reinterpret_cast<WordVec>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(bits)));
#else
  return __builtin_convertvector(bits, WordVec);
#endif
}

inline HalfVec lower_halves(WordVec words) {
#if defined(__AVX512F__)
  return reinterpret_cast<HalfVec>(_mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(words)));
#else
  return __builtin_convertvector(words, HalfVec);
#endif
}

inline Vec widened(HalfVec bits) { return reinterpret_cast<Vec>(words_of(bits) << 16); }

// To nearest, ties to even; NaN stays NaN, which carrying over would turn into infinity.
inline HalfVec narrowed(Vec value) {
  const WordVec bits = reinterpret_cast<WordVec>(value);
  const WordVec rounded = (bits + (((bits >> 16) & 1) + 0x7fff)) >> 16;
  return lower_halves(value == value ? rounded : (bits >> 16) | 0x40);
}

inline float widened(float value) { return value; }
inline float widened(BFloat16 value) { return __builtin_bit_cast(float, uint32_t{value.bits} << 16); }

inline Vec load(const BFloat16* from) {
  return widened(*reinterpret_cast<const LooseHalfVec*>(from));
}  // [lanes]

inline void store(BFloat16* to, Vec value) {
  *reinterpret_cast<LooseHalfVec*>(to) = narrowed(value);
}  // [lanes]

inline Vec load(const BFloat16* from, int64_t count) {  // from: [count]
  if (count == lanes) return load(from);
  BFloat16 padded[lanes] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = from[i];
  return load(padded);
}

inline void store(BFloat16* to, Vec value, int64_t count) {  // to: [count]
  if (count == lanes) return store(to, value);
  BFloat16 padded[lanes];
  store(padded, value);
  for (int64_t i = 0; i < count; ++i) to[i] = padded[i];
}

inline float sum_of_lanes(Vec value) {
  float parts[lanes];
  store(parts, value);
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
  return parts[0];
}

// The lanes that add up to one number of a gradient.
inline void add_lanes(float* to, Vec sum) { store(to, load(to) + sum); }  // to: [sum_lanes]

// max(low, x) in one instruction, which a comparison and a choice are not; hands NaN of x through.
inline Vec larger_of(Vec low, Vec x) {
#if defined(__AVX512F__)
  return _mm512_max_ps(low, x);
#elif defined(__AVX2__)
  return _mm256_max_ps(low, x);
#else
  return low > x ? low : x;
#endif
}

inline Vec larger_of(float low, Vec x) { return larger_of(broadcast(low), x); }

// max(x, 0) and min(x, high) that hand NaN through: a comparison with NaN is false.
inline Vec positive_part(Vec x) { return x < 0.0f ? Vec{} : x; }
inline Vec at_most(Vec x, float high) { return x > high ? broadcast(high) : x; }

inline Vec magnitude(Vec x) { return reinterpret_cast<Vec>(reinterpret_cast<IntVec>(x) & 0x7fffffff); }

}  // namespace
}  // namespace lpn
