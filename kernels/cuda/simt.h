// The machine that the kernels are written for: warps of 32 lanes, shared memory, matrix products of a warp.
//
// Compiled by nvcc these functions are single instructions. Compiled by a C++ compiler they are the model in
// model/simt_model.h, which runs the same kernels on a CPU, every lane and every register of them, so that
// index arithmetic, fragment layouts and barriers are tested where there is no GPU.
//
// Fragments, with g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix Fragments for mma"):
//   accumulator, 16 x 8   d[0], d[1] = D[g][2t], D[g][2t + 1];   d[2], d[3] the same of row g + 8
//   16 bits, depth 16     two values each:   a[0], a[1] = A[g][2t..], A[g + 8][2t..];   a[2], a[3] at 2t + 8
//                                            b[0], b[1] = B[2t..][g], B[2t + 8..][g]
//   tf32, depth 8         a[0], a[1] = A[g][t], A[g + 8][t];   a[2], a[3] at t + 4
//                         b[0], b[1] = B[t][g], B[t + 4][g]

#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define LPN_DEVICE __device__ __forceinline__
#else
#include "model/simt_model.h"
#define LPN_DEVICE inline
#endif

namespace simt {

constexpr int lanes = 32;

#if defined(__CUDACC__)

// ---- who I am ---------------------------------------------------------------------------------------------

LPN_DEVICE int lane() { return static_cast<int>(threadIdx.x) & 31; }
LPN_DEVICE int warp() { return static_cast<int>(threadIdx.x) >> 5; }
LPN_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
LPN_DEVICE int threads() { return static_cast<int>(blockDim.x); }
LPN_DEVICE int block() { return static_cast<int>(blockIdx.x); }
LPN_DEVICE int blocks() { return static_cast<int>(gridDim.x); }

// ---- together ---------------------------------------------------------------------------------------------

LPN_DEVICE void sync_warp() { __syncwarp(); }
LPN_DEVICE void sync_block() { __syncthreads(); }
// The `warps` warps of team `team` of the block; at most 15 teams.
template <int warps>
LPN_DEVICE void sync_team(int team) {
  asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "n"(warps * 32) : "memory");
}
LPN_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(~0u, value, mask); }
LPN_DEVICE double shuffle_xor(double value, int mask) { return __shfl_xor_sync(~0u, value, mask); }
LPN_DEVICE bool any(bool mine) { return __any_sync(~0u, mine); }

LPN_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

LPN_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

LPN_DEVICE void mma_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

// Four 8 x 8 blocks of 16-bit values; lane 8 i + r gives the address of row r of block i (16 aligned bytes in
// shared memory) and receives from block i its values [g][2t], [g][2t + 1], or of the transposed block.
template <bool transposed>
LPN_DEVICE void load_blocks(uint32_t (&words)[4], const uint16_t* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
}

// ---- copies -----------------------------------------------------------------------------------------------

// 16 bytes, both addresses aligned; arrives with wait_copies() and a barrier.
LPN_DEVICE void copy16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}
LPN_DEVICE void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Data that no kernel in flight writes; 4 or 8 bytes.
template <class T>
LPN_DEVICE T constant_load(const T* address) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "one load");
  T value;
  if constexpr (sizeof(T) == 8) {
    const float2 raw = __ldg(reinterpret_cast<const float2*>(address));
    __builtin_memcpy(&value, &raw, sizeof value);
  } else {
    const float raw = __ldg(reinterpret_cast<const float*>(address));
    __builtin_memcpy(&value, &raw, sizeof value);
  }
  return value;
}

// ---- numbers ----------------------------------------------------------------------------------------------

// Two values in one register, the first in the low half; round to nearest even.
LPN_DEVICE uint32_t pack_f16(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
LPN_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
LPN_DEVICE void unpack_f16(uint32_t word, float& low, float& high) {
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
      : "=f"(low), "=f"(high)
      : "r"(word));
}
// Ten explicit mantissa bits, ties away from zero: what the tensor core multiplies exactly.
LPN_DEVICE float round_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return __uint_as_float(bits);
}
LPN_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
LPN_DEVICE uint32_t as_bits(float value) { return __float_as_uint(value); }

// 2^x to 2 ulp and log2(x) to 1e-7 absolute on [1, 2]; subnormal results are zero. One instruction each.
LPN_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
LPN_DEVICE float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
LPN_DEVICE float divide_fast(float a, float b) { return __fdividef(a, b); }

#endif

}  // namespace simt
