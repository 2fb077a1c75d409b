// Work sharing on the OpenMP threads that torch already runs.
//
// Nothing here links libgomp. Wheels bring their own copy under a private name, and a second pool would spin
// against the first. Whoever has loaded one made GOMP_parallel a global symbol; with none loaded the work is
// done by the calling thread.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace lpn {

using GompParallel = void (*)(void (*body)(void*), void* argument, unsigned threads, unsigned flags);

// The entry point of the loaded OpenMP runtime, or nullptr.
GompParallel gomp_parallel();

// Calls body(worker, begin, end) until [0, items) is covered; worker < threads is unique among those running.
// Ranges of `grain` items are drawn from a shared counter, so a late thread costs one range, not a share.
template <class Body>
void parallel_for(int64_t items, int64_t grain, int threads, const Body& body) {
  struct Shared {
    const Body& body;
    int64_t items;
    int64_t grain;
    std::atomic<int64_t> next{0};
    std::atomic<int> workers{0};
  } shared{body, items, grain};

  const auto run = [](void* argument) {
    Shared& shared = *static_cast<Shared*>(argument);
    const int worker = shared.workers.fetch_add(1);
    for (;;) {
      const int64_t begin = shared.next.fetch_add(shared.grain);
      if (begin >= shared.items) return;
      shared.body(worker, begin, std::min(begin + shared.grain, shared.items));
    }
  };

  const int64_t ranges = (items + grain - 1) / grain;
  const auto wanted = static_cast<unsigned>(std::min<int64_t>(threads, ranges));
  const GompParallel parallel = wanted > 1 ? gomp_parallel() : nullptr;
  if (parallel)
    parallel(run, &shared, wanted, 0);
  else
    run(&shared);
}

}  // namespace lpn
