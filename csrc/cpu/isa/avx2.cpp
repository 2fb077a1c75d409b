// AVX2 with FMA: 8 lanes. The flags are in CMakeLists.txt.

#include "table.h"

namespace lpn {

extern constexpr Kernels avx2_kernels = kernels_named("avx2");

}  // namespace lpn
