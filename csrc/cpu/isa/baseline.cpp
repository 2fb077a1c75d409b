// Whatever the compiler assumes of every CPU of this architecture: 4 lanes (SSE2, NEON).

#include "table.h"

namespace lpn {

extern constexpr Kernels baseline_kernels = kernels_named("baseline");

}  // namespace lpn
