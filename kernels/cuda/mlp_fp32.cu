#include "mlp_kernels.h"

namespace lpn {

const MlpKernels mlp_fp32{&SolveLauncher<Fp32>::prepare, &Launcher<Fp32>::pack, &Launcher<Fp32>::run,
                          &SolveLauncher<Fp32>::run};

}  // namespace lpn
