// The flat vector P and the projection onto its non-negative entries.
//
//   P = parameters one after the other;   max(P, 0) where it must not be negative
//   the rule on the way back: a gradient that would push a clamped entry further below zero becomes 0

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "threads.h"

namespace lpn {

// One parameter's place in P: they follow each other.
struct Segment {
  int64_t size;
  int64_t nonnegative;  // 0 or 1
};

// Calls body(segment, first, at, count) for ranges that cover all segments: `count` entries from the `first`
// of that segment on, which is entry `at` of P. Large segments are shared among the threads.
template <class Body>
void for_each_range(const Segment* segments, int64_t segment_count, int threads, const Body& body) {
  // 512 KB of traffic is some 20 us, large against drawing the range.
  constexpr int64_t longest = int64_t{1} << 16;
  struct Range {
    int64_t segment, first, at, count;
  };
  std::vector<Range> ranges;
  int64_t offset = 0;
  for (int64_t i = 0; i < segment_count; ++i) {
    for (int64_t first = 0; first < segments[i].size; first += longest)
      ranges.push_back({i, first, offset + first, std::min(longest, segments[i].size - first)});
    offset += segments[i].size;
  }
  if (offset <= 2 * longest) threads = 1;  // done sooner than a second thread wakes up
  parallel_for(static_cast<int64_t>(ranges.size()), 1, threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      body(ranges[i].segment, ranges[i].first, ranges[i].at, ranges[i].count);
  });
}

// -0.0 becomes 0.0, NaN stays.
inline void pack(const std::vector<const float*>& parameters,  // one address per segment
                 const Segment* segments,                      // [parameters.size()]
                 float* P,                                     // [sum of the sizes]
                 int threads) {
  const auto count = static_cast<int64_t>(parameters.size());
  for_each_range(segments, count, threads, [&](int64_t segment, int64_t first, int64_t at, int64_t size) {
    const float* from = parameters[segment] + first;
    float* to = P + at;
    if (!segments[segment].nonnegative)
      std::copy(from, from + size, to);
    else
      for (int64_t i = 0; i < size; ++i) to[i] = from[i] <= 0.0f ? 0.0f : from[i];
  });
}

// The rule, in place on gP.
inline void project_gradient(const float* P,           // [sum of the sizes]
                             float* gP,                // [sum of the sizes]
                             const Segment* segments,  // [segment_count]
                             int64_t segment_count,
                             int threads) {
  for_each_range(segments, segment_count, threads, [&](int64_t segment, int64_t, int64_t at, int64_t size) {
    if (!segments[segment].nonnegative) return;
    for (int64_t i = at; i < at + size; ++i) gP[i] = (P[i] <= 0.0f) & (gP[i] >= 0.0f) ? 0.0f : gP[i];
  });
}

}  // namespace lpn
