#include "mlp_kernels.h"

namespace lpn {

const MlpKernels mlp_tf32{&Launcher<Tf32>::prepare, &Launcher<Tf32>::pack, &Launcher<Tf32>::run, nullptr};

}  // namespace lpn
