"""One prox with an installed lpn_fast, for `make wheel` and the wheels' workflow: needs torch and nothing of the tests.

python -I tests/installed_wheel.py
"""

import torch

import lpn_fast as lf

torch.manual_seed(0)
model, z = lf.pretrained("natural-gray"), torch.rand(1, 1, 32, 32)
results = {}
for backend in ("cpu", "torch"):  # "cpu" raises unless the compiled module runs
    with torch.no_grad(), lf.use_backend(backend):
        results[backend] = model(z, 0.1)
error = float((results["cpu"] - results["torch"]).norm() / results["torch"].norm())
if not error < 1e-5:
    raise SystemExit(f"compiled kernels and torch differ by {error:.1e}, relative")
print(f"lpn_fast {lf.__version__} in {lf.__path__[0]}: compiled kernels and torch differ by {error:.0e}, relative")
