#include "mlp_kernels.h"

namespace lpn {

const MlpKernels mlp_fp16{&Launcher<Fp16>::prepare, &Launcher<Fp16>::pack, &Launcher<Fp16>::run, nullptr};

}  // namespace lpn
