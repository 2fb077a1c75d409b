#include "threads.h"

#include <dlfcn.h>

namespace lpn {

GompParallel gomp_parallel() {
  // Only success is remembered: torch may be imported after this module.
  static std::atomic<GompParallel> found{nullptr};
  GompParallel parallel = found.load(std::memory_order_relaxed);
  if (!parallel) {
    parallel = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    found.store(parallel, std::memory_order_relaxed);
  }
  return parallel;
}

}  // namespace lpn
