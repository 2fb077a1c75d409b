"""Squared first stages under gates of single pixels on the CPU, in one pass (csrc/cpu/isa/frame.h, frame_second.h).

    c = K x,   z_1 = c^2,   z_l = softplus(W_l z_{l-1} + b_l),  W_l of 1 x 1;  psi = sum_l w_l . z_l + alpha/2 |x|^2

The networks of `FrameLPN` with the default gates, and those of `MixtureLPN`, where the last units compete (csrc's
competing.h). Only images and gradients touch memory: what a derivative needs of the stages is computed anew, which is
cheaper than storing it, so there is no tape. Borders are of zeros or mirrored. All tensors are float32.
"""

import functools
import importlib

import torch
from torch import Tensor

from ....algebra.parameters import StageParameters, layout, unpack
from ....algebra.patches import Patches
from ....algebra.spec import Spec


def supports(spec: Spec) -> bool:
    """Whether these kernels compute networks of `spec`."""
    return spec.gates_pixels


def value_prox(
    spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None, with_value: bool
) -> tuple[Tensor | None, Tensor]:
    """(psi (N,) or None, f like x), for x (N, C, H, W), P (P,), noise features (N, F) or None."""
    x, packed = x.contiguous(), packed.contiguous()
    biases = biases_at(_gates(spec, packed), features)
    psi = torch.empty(len(x), dtype=torch.float64, device="cpu") if with_value else None
    f = torch.empty_like(x)
    problem, _kept = _problem(spec, x, packed, biases)
    problem.value_prox(x.data_ptr(), address(psi), f.data_ptr(), torch.get_num_threads())
    return None if psi is None else psi.to(x.dtype), f


def hvp(spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None, v: Tensor) -> Tensor:
    """H v, like x; v (N, C, H, W)."""
    return _vjp(spec, x, packed, features, None, v, None)[0]


def vjp(
    spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None, p: Tensor | None, v: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradient of sum p psi + <v, f> in x and P; p (N,), v (N, C, H, W), either may be None."""
    gradient = torch.empty_like(packed, memory_format=torch.contiguous_format)
    gx, biases = _vjp(spec, x, packed, features, p, v, gradient)
    first = 0
    for gate in _gates(spec, gradient):
        part = biases[:, first : first + len(gate.bias)]
        if gate.noise is not None:
            torch.mm(part.T, features, out=gate.noise)
        first += len(gate.bias)
    return gx, gradient


def _vjp(spec, x, packed, features, p, v, gradient: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(H v + p f, gradient of the biases of every image (N, gates of all stages) or None); `gradient` is filled."""
    x, packed = x.contiguous(), packed.contiguous()
    p = None if p is None else p.contiguous()
    v = None if v is None else v.contiguous()
    biases = biases_at(_gates(spec, packed), features)
    gx = torch.empty_like(x)
    bias_gradient = None if gradient is None else x.new_empty(len(x), biases.shape[1])
    problem, _kept = _problem(spec, x, packed, biases)
    problem.vjp(
        x.data_ptr(), address(p), address(v), gx.data_ptr(), address(gradient), packed.numel(), address(bias_gradient),
        torch.get_num_threads(),
    )  # fmt: skip
    return gx, bias_gradient


def _gates(spec: Spec, packed: Tensor) -> tuple[StageParameters, ...]:
    return unpack(spec, packed).stages[1:]


def biases_at(gates: tuple[StageParameters, ...], features: Tensor | None) -> Tensor:
    """b_l + B_l phi(sigma) of all stages side by side, (N, gates) or, without a noise level, (1, gates).

    In double precision: products in single precision add up in another order for few rows than for many, and the
    result of an image would depend on how many others are in its batch.
    """
    parts = [
        g.bias[None]
        if g.noise is None
        else torch.addmm(g.bias.double(), features.double(), g.noise.T.double()).to(g.bias.dtype)
        for g in gates
    ]
    if not parts:
        return torch.empty(1, 0, device="cpu")
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, dim=1)


def _problem(spec: Spec, x: Tensor, packed: Tensor, biases: Tensor):
    """(csrc's description of network and sizes, what must live as long); P, table and biases are read in place."""
    first = spec.stages[0]
    table, filters_at = _table(spec)
    shared, mirror = len(biases) == 1, mirror_of(spec, *x.shape[2:])
    problem = _cpu().Frame(
        packed.data_ptr(), table.data_ptr(), len(spec.stages) - 1, filters_at, biases.data_ptr(), shared, *x.shape,
        first.width, first.skip_kernel, spec.stages[-1].competing, spec.beta, spec.alpha, *map(address, mirror),
    )  # fmt: skip
    return problem, mirror


@functools.lru_cache(maxsize=64)
def mirror_of(spec: Spec, height: int, width: int) -> tuple[Tensor | None, ...]:
    """Rows, columns and their weights (algebra/patches.py), or None where the image goes on by zeros."""
    if not spec.is_mirrored:
        return (None,) * 4
    like = torch.empty(0, device="cpu", dtype=torch.float32)
    patches = Patches((height, width), spec.stages[0].skip_kernel, like, spec.spacing)
    return *patches.sources, *patches.axis_weights


@functools.cache
def _table(spec: Spec) -> tuple[Tensor, int]:
    """(csrc's table of the gates as a dense network of z_1, int64 [6 (L - 1) + 2], where K begins in P)."""
    offsets = {slot.name: slot.offset for slot in layout(spec)}
    table = []
    for index, stage in enumerate(spec.stages[1:], 1):
        core, bias, head = (offsets.get(f"stages.{index}.{name}", -1) for name in ("core", "bias", "head"))
        reads = (-1, core) if index == 1 else (core, -1)  # core and skip: the first stage reads its input
        table += [stage.width, *reads, bias, head, -1]
    table += [offsets.get("stages.0.head", -1), -1]
    return torch.tensor(table, dtype=torch.int64, device="cpu"), offsets["stages.0.skip"]


def _cpu():
    return importlib.import_module("lpn_fast._cpu")


def address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()
