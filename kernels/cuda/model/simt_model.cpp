#include "simt_model.h"

#include <setjmp.h>
#include <string.h>
#include <ucontext.h>

#include <cmath>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace simt {
namespace {

constexpr int warp_lanes = 32;
constexpr size_t stack_bytes = 128 * 1024;
constexpr size_t guard_bytes = 256;
constexpr unsigned char guard_value = 0xa5;
constexpr unsigned char poison = 0xff;  // four of them are a NaN, and so are two as a 16-bit number

enum class Wait {
  nothing,
  sync_warp,
  sync_block,
  sync_team,
  shuffle,
  any,
  mma_f16,
  mma_bf16,
  mma_tf32,
  load,
  load_transposed,
  end
};

const char* name_of(Wait wait) {
  static const char* names[] = {"nothing",
                                "sync_warp",
                                "sync_block",
                                "sync_team",
                                "shuffle_xor",
                                "any",
                                "mma_f16",
                                "mma_bf16",
                                "mma_tf32",
                                "load_blocks",
                                "load_blocks<transposed>",
                                "its end"};
  return names[static_cast<int>(wait)];
}

struct Copy {
  void* to;
  unsigned char bytes[16];
};

struct Lane {
  ucontext_t start;
  jmp_buf resume;
  std::unique_ptr<char[]> stack;
  bool begun;
  Wait wait;
  // operands of what it waits for
  float* d;
  const void* a;
  const void* b;
  uint32_t* words;
  double value;
  int mask;
  int team, team_warps;
  std::vector<Copy> copies;  // begun and not yet waited for
};

struct Machine {
  int block, blocks, warps;
  int current;  // lane of the block
  std::vector<Lane> lanes;
  jmp_buf scheduler;
  ucontext_t scheduler_context;
  const std::function<void(unsigned char*)>* kernel;
  unsigned char* shared;
  std::exception_ptr failure;
};

thread_local Machine* machine = nullptr;

Lane& me() { return machine->lanes[machine->current]; }

void yield(Wait wait) {
  me().wait = wait;
  if (_setjmp(me().resume) == 0) _longjmp(machine->scheduler, 1);
}

void lane_main() {
  try {
    (*machine->kernel)(machine->shared);
  } catch (...) {
    machine->failure = std::current_exception();
  }
  me().wait = Wait::end;
  _longjmp(machine->scheduler, 1);
}

void resume(int index) {
  machine->current = index;
  Lane& lane = machine->lanes[index];
  lane.wait = Wait::nothing;
  if (_setjmp(machine->scheduler) == 0) {
    if (lane.begun) _longjmp(lane.resume, 1);
    lane.begun = true;
    getcontext(&lane.start);
    lane.start.uc_stack.ss_sp = lane.stack.get();
    lane.start.uc_stack.ss_size = stack_bytes;
    lane.start.uc_link = nullptr;
    makecontext(&lane.start, lane_main, 0);
    setcontext(&lane.start);
  }
  if (machine->failure) std::rethrow_exception(machine->failure);
}

// ---- what 32 lanes do together ----------------------------------------------------------------------------

float f16_value(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  double value = exponent == 31  ? (mantissa ? NAN : INFINITY)
                 : exponent == 0 ? std::ldexp(mantissa, -24)
                                 : std::ldexp(1024 + mantissa, exponent - 25);
  return static_cast<float>(bits & 0x8000 ? -value : value);
}

uint16_t f16_bits(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (std::isnan(value)) return 0x7fff;
  if (size >= 65520.0f) return sign | 0x7c00;
  if (size < 6.103515625e-5f) return sign | static_cast<uint16_t>(std::nearbyint(size * 16777216.0f));
  const uint32_t bits = as_bits(size) - (112u << 23);
  return sign | static_cast<uint16_t>((bits + 0xfff + ((bits >> 13) & 1)) >> 13);
}

float bf16_value(uint16_t bits) { return as_float(uint32_t{bits} << 16); }

uint16_t bf16_bits(float value) {
  if (std::isnan(value)) return 0x7fff;
  const uint32_t bits = as_bits(value);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// D = A B + D, the products exact, one rounding per accumulator: A [16][depth], B [depth][8]
template <int depth, class ReadA, class ReadB>
void multiply(Lane* lanes, ReadA read_a, ReadB read_b) {
  double a[16][depth], b[depth][8];
  for (int i = 0; i < warp_lanes; ++i) {
    read_a(lanes[i], i / 4, i % 4, a);
    read_b(lanes[i], i / 4, i % 4, b);
  }
  for (int i = 0; i < warp_lanes; ++i) {
    for (int r = 0; r < 4; ++r) {
      const int row = i / 4 + (r / 2) * 8, column = 2 * (i % 4) + r % 2;
      double sum = lanes[i].d[r];
      for (int k = 0; k < depth; ++k) sum += a[row][k] * b[k][column];
      lanes[i].d[r] = static_cast<float>(sum);
    }
  }
}

template <float (*value)(uint16_t)>
void multiply16(Lane* lanes) {
  const auto half = [](const void* words, int i, int part) {
    return value(static_cast<uint16_t>(static_cast<const uint32_t*>(words)[i] >> (16 * part)));
  };
  multiply<16>(
      lanes,
      [&](const Lane& lane, int g, int t, double (&a)[16][16]) {
        for (int i = 0; i < 4; ++i)
          for (int part = 0; part < 2; ++part)
            a[g + (i % 2) * 8][2 * t + (i / 2) * 8 + part] = half(lane.a, i, part);
      },
      [&](const Lane& lane, int g, int t, double (&b)[16][8]) {
        for (int i = 0; i < 2; ++i)
          for (int part = 0; part < 2; ++part) b[2 * t + i * 8 + part][g] = half(lane.b, i, part);
      });
}

void multiply_tf32(Lane* lanes) {
  // the tensor core does not see the low 13 bits
  const auto seen = [](const void* values, int i) {
    return as_float(as_bits(static_cast<const float*>(values)[i]) & 0xffffe000u);
  };
  multiply<8>(
      lanes,
      [&](const Lane& lane, int g, int t, double (&a)[16][8]) {
        for (int i = 0; i < 4; ++i) a[g + (i % 2) * 8][t + (i / 2) * 4] = seen(lane.a, i);
      },
      [&](const Lane& lane, int g, int t, double (&b)[8][8]) {
        for (int i = 0; i < 2; ++i) b[t + i * 4][g] = seen(lane.b, i);
      });
}

void load_matrices(Lane* lanes, bool transposed) {
  for (int i = 0; i < 4; ++i) {
    const uint16_t* rows[8];
    for (int r = 0; r < 8; ++r) {
      rows[r] = static_cast<const uint16_t*>(lanes[8 * i + r].a);
      if (reinterpret_cast<uintptr_t>(rows[r]) % 16) throw std::runtime_error("load_blocks: unaligned row");
    }
    for (int lane = 0; lane < warp_lanes; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const uint32_t low = transposed ? rows[2 * t][g] : rows[g][2 * t];
      const uint32_t high = transposed ? rows[2 * t + 1][g] : rows[g][2 * t + 1];
      lanes[lane].words[i] = low | high << 16;
    }
  }
}

void shuffle(Lane* lanes) {
  double values[warp_lanes];
  for (int i = 0; i < warp_lanes; ++i) values[i] = lanes[i ^ lanes[i].mask].value;
  for (int i = 0; i < warp_lanes; ++i) lanes[i].value = values[i];
}

void any_of(Lane* lanes) {
  double any = 0;
  for (int i = 0; i < warp_lanes; ++i) any = lanes[i].value != 0 ? 1 : any;
  for (int i = 0; i < warp_lanes; ++i) lanes[i].value = any;
}

void carry_out(Wait wait, Lane* lanes) {
  switch (wait) {
    case Wait::shuffle:
      return shuffle(lanes);
    case Wait::any:
      return any_of(lanes);
    case Wait::mma_f16:
      return multiply16<f16_value>(lanes);
    case Wait::mma_bf16:
      return multiply16<bf16_value>(lanes);
    case Wait::mma_tf32:
      return multiply_tf32(lanes);
    case Wait::load:
      return load_matrices(lanes, false);
    case Wait::load_transposed:
      return load_matrices(lanes, true);
    default:
      return;
  }
}

// Runs a warp up to the next barrier that it shares with others, or to its end; which of them.
Wait run_to_barrier(int warp) {
  Lane* lanes = machine->lanes.data() + warp * warp_lanes;
  while (true) {
    for (int i = 0; i < warp_lanes; ++i) resume(warp * warp_lanes + i);
    for (int i = 1; i < warp_lanes; ++i)
      if (lanes[i].wait != lanes[0].wait)
        throw std::runtime_error(std::string("lane 0 waits at ") + name_of(lanes[0].wait) + ", lane " +
                                 std::to_string(i) + " at " + name_of(lanes[i].wait));
    const Wait wait = lanes[0].wait;
    if (wait == Wait::end || wait == Wait::sync_block || wait == Wait::sync_team) return wait;
    carry_out(wait, lanes);
  }
}

// Lets the warps of a team go on if all of them have arrived.
void release_team(int warp, std::vector<Wait>& waits) {
  const Lane& lane = machine->lanes[warp * warp_lanes];
  const int first = lane.team * lane.team_warps;
  for (int i = first; i < first + lane.team_warps; ++i)
    if (i >= machine->warps || waits[i] != Wait::sync_team ||
        machine->lanes[i * warp_lanes].team != lane.team)
      return;
  for (int i = first; i < first + lane.team_warps; ++i) waits[i] = Wait::nothing;
}

void run_block(WarpOrder order) {
  for (Lane& lane : machine->lanes) lane.begun = false, lane.copies.clear();
  std::vector<Wait> waits(machine->warps, Wait::nothing);
  // The first warp of the order that can go on, as far as it can: a team runs ahead of the others up to the
  // barrier of the block.
  const auto next = [&] {
    for (int i = 0; i < machine->warps; ++i) {
      const int warp = order == WarpOrder::forward ? i : machine->warps - 1 - i;
      if (waits[warp] == Wait::nothing) return warp;
    }
    return -1;
  };
  while (true) {
    for (int warp = next(); warp >= 0; warp = next()) {
      waits[warp] = run_to_barrier(warp);
      if (waits[warp] == Wait::sync_team) release_team(warp, waits);
    }
    for (const Wait wait : waits)
      if (wait != waits[0] || wait == Wait::sync_team)
        throw std::runtime_error(std::string("warps wait for each other: at ") + name_of(waits[0]) +
                                 " and at " + name_of(wait));
    if (waits[0] == Wait::end) return;
    for (Wait& wait : waits) wait = Wait::nothing;
  }
}

}  // namespace

void run(int blocks,
         int warps,
         size_t shared_bytes,
         WarpOrder order,
         const std::function<void(unsigned char*)>& kernel) {
  std::vector<unsigned char> memory(shared_bytes + 2 * guard_bytes + 128);
  unsigned char* guard = memory.data() + (128 - reinterpret_cast<uintptr_t>(memory.data()) % 128);
  Machine here{};
  here.blocks = blocks;
  here.warps = warps;
  here.kernel = &kernel;
  here.shared = guard + guard_bytes;
  here.lanes.resize(static_cast<size_t>(warps) * warp_lanes);
  for (Lane& lane : here.lanes) lane.stack.reset(new char[stack_bytes]);
  Machine* const before = machine;
  machine = &here;
  try {
    for (here.block = 0; here.block < blocks; ++here.block) {
      memset(guard, guard_value, shared_bytes + 2 * guard_bytes);
      memset(here.shared, poison, shared_bytes);
      run_block(order);
      for (size_t i = 0; i < guard_bytes; ++i)
        if (guard[i] != guard_value || here.shared[shared_bytes + i] != guard_value)
          throw std::runtime_error("a write outside shared memory");
    }
  } catch (...) {
    machine = before;
    throw;
  }
  machine = before;
}

int lane() { return machine->current % warp_lanes; }
int warp() { return machine->current / warp_lanes; }
int thread() { return machine->current; }
int threads() { return machine->warps * warp_lanes; }
int block() { return machine->block; }
int blocks() { return machine->blocks; }

void sync_warp() { yield(Wait::sync_warp); }
void sync_block() { yield(Wait::sync_block); }
void sync_team(int team, int warps) {
  me().team = team, me().team_warps = warps;
  yield(Wait::sync_team);
}

double shuffle_xor(double value, int mask) {
  me().value = value;
  me().mask = mask;
  yield(Wait::shuffle);
  return me().value;
}
float shuffle_xor(float value, int mask) {
  return static_cast<float>(shuffle_xor(static_cast<double>(value), mask));
}
bool any(bool mine) {
  me().value = mine;
  yield(Wait::any);
  return me().value != 0;
}

void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  me().d = d, me().a = a, me().b = b;
  yield(Wait::mma_f16);
}
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  me().d = d, me().a = a, me().b = b;
  yield(Wait::mma_bf16);
}
void mma_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  me().d = d, me().a = a, me().b = b;
  yield(Wait::mma_tf32);
}
void load_blocks(uint32_t (&words)[4], const uint16_t* row, bool transposed) {
  me().a = row, me().words = words;
  yield(transposed ? Wait::load_transposed : Wait::load);
}

void copy16(void* shared, const void* global) {
  Copy copy{shared, {}};
  memcpy(copy.bytes, global, 16);
  me().copies.push_back(copy);
}
void wait_copies() {
  for (const Copy& copy : me().copies) memcpy(copy.to, copy.bytes, 16);
  me().copies.clear();
}

uint32_t pack_f16(float low, float high) { return f16_bits(low) | uint32_t{f16_bits(high)} << 16; }
uint32_t pack_bf16(float low, float high) { return bf16_bits(low) | uint32_t{bf16_bits(high)} << 16; }
void unpack_f16(uint32_t word, float& low, float& high) {
  low = f16_value(static_cast<uint16_t>(word));
  high = f16_value(static_cast<uint16_t>(word >> 16));
}
float round_tf32(float value) {
  return std::isfinite(value) ? as_float((as_bits(value) + 0x1000u) & 0xffffe000u) : value;
}
float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
uint32_t as_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
float exp2_fast(float x) {
  const float y = std::exp2(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}
float log2_fast(float x) { return std::log2(x); }
float divide_fast(float a, float b) { return a / b; }

}  // namespace simt
