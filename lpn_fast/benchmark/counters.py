"""Work of every operation: the counts that rooflines and rates are computed from.

One multiply-add is 2 FLOP; F is the FLOP of one value sweep (the linear maps W_l and A_l; no element-wise step):

    value F,   prox 2F,   hvp 4F,   gradient (forward and all gradients of a loss of f) 6F

Of an explicit prior, whose f is a solve, "value" is R with its gradient, "prox" one gradient of R and "hvp" a Hessian
product of R; its gates take two roots each.

Traffic counts what must pass through memory when each stage runs by itself and only z, e, dz and delta are stored,
Z bytes per such set of activations. A dense network stays in cache: Z = 0, whatever an implementation does.

    value     z: write, read by the next stage                                                                  2 Z
    prox      z: write, read by the next stage, read for s;   e: write, read by the transposed map              5 Z
    hvp       that, tangent (read z, write and read dz), adjoint (read z, e, dz, write and read delta)         13 Z
    gradient  that, and e, dz, delta, z once more for the weights                                               17 Z

Special functions per unit: softplus 2 (exp, log), slope 1, again for tangent and adjoint, curvature 1.
The figures are checked against counts by hand in tests/test_bench.py.
"""

import math
from dataclasses import dataclass

from ..algebra.parameters import parameter_count
from ..algebra.spec import Spec, ceil_div

SWEEPS = {"value": 1, "prox": 2, "hvp": 4, "gradient": 6}  # in F
ACTIVATION_PASSES = {"value": 2, "prox": 5, "hvp": 13, "gradient": 17}  # in Z
SPECIAL_PER_UNIT = {"value": 2, "prox": 3, "hvp": 6, "gradient": 6}
IMAGES = {"value": 1, "prox": 2, "hvp": 3, "gradient": 3}  # x-sized vectors read or written
ADAM_PASSES = 7  # reads p, grad, m, v and writes p, m, v


@dataclass(frozen=True)
class Work:
    """What one call does, at the least."""

    flop: int
    activation_bytes: int
    other_bytes: int  # images and parameters
    special: int  # special functions

    @property
    def bytes(self) -> int:
        return self.activation_bytes + self.other_bytes

    def times(self, count: float) -> "Work":
        """`count` such calls."""
        return Work(*(round(count * n) for n in (self.flop, self.activation_bytes, self.other_bytes, self.special)))


def forward_macs(spec, height: int = 1, width: int = 1) -> int:
    """Multiply-adds of one value sweep of one sample; height and width of the image, for convolutional networks."""
    if spec.kind == "explicit":
        return positions(spec, height, width) * spec.products
    sizes = _sizes(spec, height, width)
    total, before = 0, 0
    for stage, size in zip(spec.stages, sizes, strict=True):
        inputs = before * stage.kernel**2 + spec.channels * stage.skip_kernel**2
        total += math.prod(size) * stage.width * inputs
        before = stage.width
    if spec.quadratic:
        total += height * width * spec.quadratic * spec.channels * spec.quadratic_kernel**2
    return total


def units(spec, height: int = 1, width: int = 1) -> int:
    """Entries of z_1..z_L of one sample."""
    if spec.kind == "explicit":
        return positions(spec, height, width) * (spec.atoms + spec.groups)
    sizes = _sizes(spec, height, width)
    return sum(stage.width * math.prod(size) for stage, size in zip(spec.stages, sizes, strict=True))


def work(spec, op: str, shape: tuple[int, ...], element_bytes: int = 4) -> Work:
    """The work of `op` at an input of `shape`, (N, d) or (N, C, H, W).

    Parameters
    ----------
    spec : Spec
    op : "value", "prox", "hvp", "gradient" or "step"
        "step" is a training step: the gradient, Adam on every parameter, and the projection.
    shape : tuple of int
    element_bytes : int
        Bytes of an activation; images and parameters always count 4.
    """
    sweep = "gradient" if op == "step" else op
    batch, image = shape[0], shape[2:]
    z = 0 if spec.is_dense else batch * units(spec, *image) * element_bytes
    explicit = spec.kind == "explicit"
    parameters = 4 * (spec.slots()[-1].end if explicit else parameter_count(spec))
    sweep = "prox" if explicit and sweep == "value" else sweep
    passes = 1 + (1 + ADAM_PASSES if op == "step" else sweep == "gradient")  # read P; write its gradient; Adam
    return Work(
        flop=batch * 2 * SWEEPS[sweep] * forward_macs(spec, *image),
        activation_bytes=ACTIVATION_PASSES[sweep] * z,
        other_bytes=IMAGES[sweep] * 4 * math.prod(shape) + passes * parameters,
        special=batch * (_roots(spec, *image) if explicit else SPECIAL_PER_UNIT[sweep] * units(spec, *image)),
    )


def positions(spec, height: int, width: int) -> int:
    """Patches of an explicit prior's image."""
    return (height + spec.kernel - 1) * (width + spec.kernel - 1)


def _roots(spec, height: int, width: int) -> int:
    return 2 * spec.groups * positions(spec, height, width)


def _sizes(spec: Spec, height: int, width: int) -> list[tuple[int, int]]:
    return [(1, 1)] * len(spec.stages) if spec.is_dense else spec.stage_sizes(height, width)


def padded_dense_flop(dim: int, hidden: int, stages: int, multiple: int = 16) -> int:
    """FLOP of a dense prox whose input is padded to `multiple` columns, as tensor cores take it."""
    columns = ceil_div(dim, multiple) * multiple
    return 4 * hidden * ((stages - 1) * hidden + stages * columns)
