// simt.h on a CPU: a block of warps whose lanes are coroutines in lock step.
//
// A lane runs ordinary C++ until it meets something the warp does together (a matrix product, a shuffle, a
// barrier) and waits there for the other 31. The operation is then carried out on the registers of all of
// them, exactly as the PTX manual lays them out. Warps run one after the other up to each barrier they share
// with others, in the order or the reverse order of their numbers: results that differ between the two orders
// show a missing barrier. Copies arrive when they are waited for, not before. Lanes that arrive at different
// operations end the run with an exception.

#pragma once

#include <stddef.h>
#include <stdint.h>

#include <functional>

namespace simt {

enum class WarpOrder { forward, backward };

// Runs `kernel` for every lane of a grid of `blocks` of `warps`; `shared_bytes` of shared memory per block,
// filled with NaN, with guards on both sides. Throws std::runtime_error if a lane strays or a guard is
// written.
void run(int blocks,
         int warps,
         size_t shared_bytes,
         WarpOrder order,
         const std::function<void(unsigned char* shared)>& kernel);

int lane();
int warp();
int thread();
int threads();
int block();
int blocks();

void sync_warp();
void sync_block();
void sync_team(int team, int warps);
template <int warps>
void sync_team(int team) {
  sync_team(team, warps);
}
float shuffle_xor(float value, int mask);
double shuffle_xor(double value, int mask);
bool any(bool mine);

void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void mma_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2]);

void load_blocks(uint32_t (&words)[4], const uint16_t* row, bool transposed);
template <bool transposed>
void load_blocks(uint32_t (&words)[4], const uint16_t* row) {
  load_blocks(words, row, transposed);
}

void copy16(void* shared, const void* global);
void wait_copies();
template <class T>
T constant_load(const T* address) {
  return *address;
}

uint32_t pack_f16(float low, float high);
uint32_t pack_bf16(float low, float high);
void unpack_f16(uint32_t word, float& low, float& high);
float round_tf32(float value);
float as_float(uint32_t bits);
uint32_t as_bits(float value);
float exp2_fast(float x);
float log2_fast(float x);
float divide_fast(float a, float b);

}  // namespace simt
