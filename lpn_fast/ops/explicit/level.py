"""What kernels are chosen and admitted by: the shape of one level of an explicit prior, and a trial of it."""

import functools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...algebra.spec import Stage
from ..device_check import GRADIENT_OF_R, HESSIAN, TRAINING, VALUE

if TYPE_CHECKING:
    from .potentials import Potentials

USUAL = ("filters", 0), ("ndim", 2)  # what names of levels leave out
IN_POTENTIALS = ("A", "U", "a", "b", "e")


@dataclass(frozen=True)
class Level:
    """Shape of the patches and potentials of one level, as far as a kernel depends on it."""

    channels: int
    kernel: int
    groups: int
    filters: int = 0  # free ones; 0 for an orthonormal basis of patches
    ndim: int = 2

    # what checks on a device ask of a network's spec
    is_dense = False
    image_size = None

    @property
    def atoms(self) -> int:
        """n: free filters, or C k^ndim."""
        return self.filters or self.channels * self.kernel**self.ndim

    @property
    def encoded(self) -> str:
        shape = {name: value for name, value in asdict(self).items() if (name, value) not in USUAL}
        return json.dumps({"kind": "explicit"} | shape, sort_keys=True)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Coefficients and groups, the widths by which people know it."""
        return Stage(self.atoms), Stage(self.groups)

    def trial(self, shape, packed: None, precision: str, device: torch.device, generator: torch.Generator) -> "Trial":
        """One input of that shape with potentials of every kind; `packed` is for networks."""
        return Trial(self, shape, precision, device, generator)


def level_of(pot: "Potentials", x: Tensor, k: int) -> Level:
    """The level of potentials for patches of side k of x."""
    n, taps = pot.atoms.shape
    return Level(x.shape[1], k, pot.energies.shape[1], 0 if n == taps else n, x.dim() - 2)


class Trial:
    """An image, a direction, and potentials that differ from sample to sample; in units of the noise."""

    def __init__(self, level: Level, shape, precision: str, device: torch.device, generator: torch.Generator):
        from .potentials import Potentials

        def random(*shape, uniform: bool = False) -> Tensor:
            draw = torch.rand if uniform else torch.randn
            return draw(shape, generator=generator, device="cpu", dtype=torch.float64)

        batch, groups, n = shape[0], level.groups, level.atoms
        energies = random(batch, groups + 1, n).mul(2).softmax(1)[:, :-1]
        if not level.filters:
            energies[..., : level.channels] = 0  # means carry no potential
        far, bend = (0.5 * random(batch, groups)).exp(), 1.5 + 20 * random(batch, groups, uniform=True)
        slope = 1.5 * far * (1 - bend**-2).rsqrt()
        taps = level.channels * level.kernel**level.ndim
        atoms = random(n, taps) / taps**0.5 if level.filters else torch.linalg.qr(random(n, n))[0]
        tensors = atoms, energies, slope, (slope / bend).square(), far
        self.potentials = Potentials(*(t.float().to(device) for t in tensors))
        self.x, self.v = (scale * random(*shape).float().to(device) for scale in (4.0, 1.0))
        self.scale = random(batch).float().to(device)
        self.k, self.precision = level.kernel, precision

    def double(self) -> "Trial":
        """The same in float64, where precision is full."""
        wide = object.__new__(Trial)
        wide.potentials = self.potentials.of_tensors([t.double() for t in self.potentials.tensors()])
        wide.x, wide.v, wide.scale = self.x.double(), self.v.double(), self.scale.double()
        wide.k, wide.precision = self.k, "fp32"
        return wide

    def gradient(self, kernel: Any, with_value: bool = False) -> tuple[Tensor, Tensor]:
        """(grad R, R)."""
        return kernel.run(self.potentials, self.x, None, self.k, with_value, self.precision)[::-1]

    def hessian_product(self, kernel: Any) -> tuple[Tensor, ...]:
        return (kernel.run(self.potentials, self.x, self.v, self.k, False, self.precision)[1],)

    def in_potentials(self, kernel: Any, scale: Tensor | None = None) -> tuple[Tensor, ...]:
        """The gradient of <v, grad R>, with a `scale` of that and R in the atoms and potentials."""
        return kernel.gradients(self.potentials, self.x, self.v, scale, self.k, self.precision)

    def works(self) -> dict[str, Callable[[Any], tuple[Tensor, ...]]]:
        """What is timed; the first of its results is compared at full size."""
        value = functools.partial(self.gradient, with_value=True)
        hessian = self.hessian_product
        return {GRADIENT_OF_R: self.gradient, VALUE: value, HESSIAN: hessian, TRAINING: self.in_potentials}

    def compiled(self) -> dict[str, Callable[[], object]]:
        """torch.compile of the gradient in plain code."""
        from . import plain

        gradient = torch.compile(plain.gradient, dynamic=False)
        return {GRADIENT_OF_R: lambda: gradient(self.potentials, self.x, self.k)}

    def everything(self, kernel: Any) -> dict[str, Tensor]:
        gradient, value = self.gradient(kernel, with_value=True)
        found = {"R": value, "grad R": gradient, "H v": self.hessian_product(kernel)[0]}
        parts = zip(IN_POTENTIALS, self.in_potentials(kernel, self.scale), strict=True)
        return found | {f"the gradient in {name}": part for name, part in parts}
