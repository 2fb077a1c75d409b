// A few vectors that go through a long chain of operations side by side.
//
// One activation is a chain of some 30 dependent instructions of 4 cycles. The scheduler of a core holds
// about a hundred waiting instructions, three such chains, and then the multipliers idle. Written group-wise,
// the same step of all vectors stands together in the instruction stream, and none waits for another.

#pragma once

#include "vector.h"

namespace lpn {
namespace {

template <int count>
struct Group {
  Vec part[count];
};

// f of every part.
template <int count, class F>
__attribute__((always_inline)) inline Group<count> map(const Group<count>& a, F f) {
  Group<count> result;
  for (int i = 0; i < count; ++i) result.part[i] = f(a.part[i]);
  return result;
}

template <int count, class F>
__attribute__((always_inline)) inline Group<count> map(const Group<count>& a, const Group<count>& b, F f) {
  Group<count> result;
  for (int i = 0; i < count; ++i) result.part[i] = f(a.part[i], b.part[i]);
  return result;
}

template <int count>
__attribute__((always_inline)) inline Group<count> operator+(const Group<count>& a, const Group<count>& b) {
  return map(a, b, [](Vec x, Vec y) { return x + y; });
}

template <int count>
__attribute__((always_inline)) inline Group<count> operator-(const Group<count>& a, const Group<count>& b) {
  return map(a, b, [](Vec x, Vec y) { return x - y; });
}

template <int count>
__attribute__((always_inline)) inline Group<count> operator*(const Group<count>& a, const Group<count>& b) {
  return map(a, b, [](Vec x, Vec y) { return x * y; });
}

template <int count>
__attribute__((always_inline)) inline Group<count> operator+(const Group<count>& a, float b) {
  return map(a, [b](Vec x) { return x + b; });
}

template <int count>
__attribute__((always_inline)) inline Group<count> operator*(const Group<count>& a, float b) {
  return map(a, [b](Vec x) { return x * b; });
}

template <int count>
__attribute__((always_inline)) inline Group<count> multiply_add(const Group<count>& a, float b, float c) {
  return map(a, [b, c](Vec x) { return x * b + c; });
}

template <int count>
__attribute__((always_inline)) inline Group<count> multiply_add(const Group<count>& a,
                                                                const Group<count>& b,
                                                                float c) {
  return map(a, b, [c](Vec x, Vec y) { return x * y + c; });
}

template <int count>
__attribute__((always_inline)) inline Group<count> multiply_add(const Group<count>& a,
                                                                const Group<count>& b,
                                                                const Group<count>& c) {
  Group<count> result;
  for (int i = 0; i < count; ++i) result.part[i] = a.part[i] * b.part[i] + c.part[i];
  return result;
}

// As many vectors as `like` has.
template <int count>
__attribute__((always_inline)) inline Group<count> load(const Group<count>& like, const float* from) {
  // from: [count * lanes]
  Group<count> result = like;
  for (int i = 0; i < count; ++i) result.part[i] = load(from + i * lanes);
  return result;
}

template <int count>
__attribute__((always_inline)) inline void store(float* to, const Group<count>& a) {  // to: [count * lanes]
  for (int i = 0; i < count; ++i) store(to + i * lanes, a.part[i]);
}

}  // namespace
}  // namespace lpn
