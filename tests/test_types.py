"""What a type checker tells users: correct scripts pass, misspelt arguments and unfit operators are reported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lpn_fast as lf

pytest.importorskip("mypy", reason="mypy is not installed")

PACKAGE = Path(lf.__file__).parent

CORRECT = """
import torch
from torch import Tensor

import lpn_fast as lf
import lpn_fast.prior as P
from lpn_fast.physics import LinearOperator
from lpn_fast.prior import PriorValue, Verdict
from lpn_fast.solvers import ProxModel, Reconstruction


class Halving:  # shares no base class with the package
    def A(self, x: Tensor, **kwargs: float) -> Tensor:
        return x / 2

    def A_adjoint(self, y: Tensor, **kwargs: float) -> Tensor:
        return y / 2


class Ridge:
    def prox_and_prior(
        self, z: Tensor, strength: float | Tensor = 1.0, sigma: float | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return z / 2, 0.5 * z.double().square().flatten(1).sum(1)


def both(y: Tensor, operator: LinearOperator, prior: ProxModel) -> Tensor:
    return lf.solvers.pgd(y, operator, prior, strength=0.5).x + lf.solvers.fista(y, operator, prior).x


model = lf.ConvLPN(1, hidden=8).eval()
y = torch.rand(1, 1, 8, 8)
camera = lf.physics.Blur.gaussian(1.0)
noisy = camera.with_noise(lf.physics.GaussianNoise(0.1))
result: Reconstruction = lf.solvers.pgd(y, Halving(), model)
for solver in (lf.solvers.pgd, lf.solvers.drs, lf.solvers.hqs, lf.solvers.admm):
    solver(y, camera, model)
lf.solvers.pgd(y, noisy, lf.InTiles(model, 8))
both(y, Halving(), Ridge())
value: PriorValue = lf.prior(model, y, tol=1e-4, max_iter=20)
outside: Verdict = P.Verdict.OUTSIDE
P.prior(model, y)
crops: lf.data.ImageCrops
"""

# every line that ends in a comment is an error of that kind, and no other is
WRONG = """
import torch
from torch import Tensor

import lpn_fast as lf
import lpn_fast.prior as P


class OneWay:
    def A(self, x: Tensor) -> Tensor:
        return x


y = torch.rand(1, 1, 8, 8)
model = lf.ConvLPN(1, hidden=8)
physics = lf.physics.Denoising()
lf.solvers.pgd(y, physics, model, strenght=0.5)  # call-arg
lf.solvers.fista(y, physics, model, max_iter="many")  # arg-type
lf.solvers.admm(y, physics, model, step_size=0.5)  # call-arg
lf.solvers.drs(y, OneWay(), model)  # arg-type
lf.solvers.hqs(y, physics, torch.nn.Identity())  # arg-type
lf.prior(model, y, tolerance=1e-4)  # call-arg
P.Verdikt  # attr-defined
"""


@pytest.mark.slow
def test_a_type_checker_accepts_correct_scripts_and_reports_mistakes(tmp_path):
    (tmp_path / "correct.py").write_text(CORRECT)
    (tmp_path / "wrong.py").write_text(WRONG)
    environment = dict(os.environ)
    if "site-packages" not in PACKAGE.parts:  # an editable install, which mypy does not follow
        environment["MYPYPATH"] = str(PACKAGE.parent)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--follow-imports=silent", "--no-error-summary", "correct.py", "wrong.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if ": error: " in line]
    seen = {(line.split(":")[0], int(line.split(":")[1]), line.rsplit("[", 1)[-1].rstrip("]")) for line in lines}
    expected = {
        ("wrong.py", number, line.rpartition("# ")[2])
        for number, line in enumerate(WRONG.splitlines(), 1)
        if "  # " in line
    }
    assert seen == expected, done.stdout + done.stderr
