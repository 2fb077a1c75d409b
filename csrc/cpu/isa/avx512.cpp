// AVX-512 F, BW, VL, DQ with FMA: 16 lanes. The flags are in CMakeLists.txt.

#include "table.h"

namespace lpn {

extern constexpr Kernels avx512_kernels = kernels_named("avx512");

}  // namespace lpn
