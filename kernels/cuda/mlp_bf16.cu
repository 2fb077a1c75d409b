#include "mlp_kernels.h"

namespace lpn {

const MlpKernels mlp_bf16{&Launcher<Bf16>::prepare, &Launcher<Bf16>::pack, &Launcher<Bf16>::run, nullptr};

}  // namespace lpn
