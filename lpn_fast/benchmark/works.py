"""The works that are measured of a network: ours by every backend, and plain torch's, with the truth in float64.

    prox             f(x)
    value            psi(x); of an explicit prior R(x) with its gradient
    gradient of R    of an explicit prior
    hvp              Hessian of psi, or of R, times v
    step             a training step: all gradients of a mean squared error, the optimizer, the projection
    invert           y with f(y) = x
    reconstruct      STEPS iterations of proximal gradient descent on a blurred image

A `Setup` draws a model's inputs, the same for everyone who does the work; `Setup.truth` is the result in float64, by
autograd through the plain module, hence by none of the package's code. Where there is no plain module (explicit priors,
volumes, quadratic terms) it is the torch backend's.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import solvers
from ..algebra.parameters import layout
from ..ops import device_check, plain_torch, registry
from ..ops.explicit import kernels
from ..ops.plain_torch import Compiled, Eager
from ..ops.precision import PRECISIONS
from ..optim import ProjectedAdam
from ..physics import Blur
from ..prior import invert
from .counters import Work, work

OPS = ("prox", "value", "gradient of R", "hvp", "step", "invert", "reconstruct")
# The work by which "auto" chooses, where that is not the prox, or the gradient of R.
ADMITTED_AS = {"value": device_check.VALUE, "hvp": device_check.HESSIAN, "step": device_check.TRAINING}
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "tf32": "tfloat32"}  # the word of results for it
assert set(DTYPES) == set(PRECISIONS)
LEARNING_RATE = 1e-4
INVERT_TOL = 1e-5
STEPS, STEP_SIZE = 5, 0.9  # of a reconstruction; the norm of a blur is 1
SIGMA = 1.0  # for noise-conditional networks: ops/plain_torch.py knows no other


class Setup:
    """Model and inputs of one work.

    Parameters
    ----------
    model : LPN or ExplicitLPN
        In evaluation mode, on its device.
    op : str
        One of OPS.
    shape : tuple of int
        Of x: (N, d) or (N, C, H, W).
    precision : str
        Of ours; plain torch computes in float32.
    kept, chunk : int, optional
        Leading samples that the truth of values is formed for, and samples of a gradient that fit in memory together.
    """

    def __init__(self, model, op: str, shape: tuple[int, ...], precision: str = "fp32", kept=None, chunk=None):
        self.model, self.op, self.shape, self.precision = model, op, tuple(shape), precision
        self.batch = self.shape[0]
        self.kept, self.chunk = slice(kept), chunk or max(1, self.batch)
        self.device = next(model.parameters()).device
        self.explicit = model.spec.kind == "explicit"
        self.has_plain = not self.explicit and model.spec.ndim == 2 and not model.spec.quadratic
        inputs = torch.randn(3, *self.shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        self.x, self.v, self.target = inputs
        self.sigma = SIGMA if model.is_noise_conditional else None
        if op == "invert":
            with torch.no_grad():
                self.x = model(2 * self.x, self.sigma)  # points that have a preimage
        if op == "reconstruct":
            self.blur = Blur(torch.full((5, 5), 1 / 25, device=self.device))
            self.x = self.blur.A(self.x) + 0.1 * self.v  # measurements

    def work(self) -> Work | None:
        """Least work of one call; an inversion counts one evaluation per sample and iteration, and one to start.

        None for volumes, which nothing counts.
        """
        spec = self.model.spec
        if spec.ndim == 3:
            return None
        if self.op == "invert":
            iterations = invert(self.model, self.x, sigma=self.sigma, tol=INVERT_TOL).iterations
            return work(spec, "prox", self.shape).times(iterations.double().mean().item() + 1)
        if self.op == "reconstruct":
            return work(spec, "prox", self.shape).times(STEPS)
        if self.explicit and self.op == "prox":
            with torch.no_grad():
                solution = self.model._solved(self.x, 1.0, SIGMA, None, 500, None)[1]
            return work(spec, "prox", self.shape).times(solution.iterations.double().mean().item() + 1)
        return work(spec, "prox" if self.op == "gradient of R" else self.op, self.shape)

    def truth(self) -> Tensor:
        """The result in float64, as `Provider.result` gives it (for an inversion: x itself)."""
        if self.op == "invert":
            return self.x.double()
        if not self.has_plain:
            return self._own_truth()
        plain = Eager(copy.deepcopy(self.model).double())
        x, v, target = (t.double() for t in (self.x, self.v, self.target))
        if self.op != "step":
            return self._by_plain(plain, x[self.kept], v[self.kept])
        total = torch.zeros(())
        for rows in torch.arange(self.batch, device=self.device).split(self.chunk):
            plain.loss_gradients(x[rows], target[rows])
            total = total + plain.potential.gradients() * (len(rows) / self.batch)
        return self.within_cone(total)

    def _own_truth(self) -> Tensor:
        wide = copy.deepcopy(self.model).double()
        x, v = self.x.double(), self.v.double()
        with registry.use_backend("torch"):
            if self.op == "step":
                return self.gradients_of(wide, x, self.target.double())
            with torch.no_grad():
                return self._by_model(wide, x[self.kept], v[self.kept]).double()

    def gradients_of(self, model, x: Tensor, target: Tensor) -> Tensor:
        """All gradients of a step, (P,)."""
        loss = (model(x, self.sigma) - target).square().mean()
        parameters = [model.get_parameter(slot.name) for slot in layout(model.spec)]
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        return self.within_cone(torch.cat([g.reshape(-1) for g in found]))

    def within_cone(self, gradient: Tensor) -> Tensor:
        """A step's gradient (P,) without what would push weights that are zero below it: the package leaves it out."""
        if self.explicit:
            return gradient
        slots = [slot for slot in layout(self.model.spec) if slot.nonnegative]
        for slot in slots:
            part = gradient[slot.offset : slot.end]
            weight = self.model.get_parameter(slot.name).detach().reshape(-1)
            gradient[slot.offset : slot.end] = torch.where((weight <= 0) & (part > 0), 0.0, part)
        return gradient

    def runs(self, backend: str) -> str:
        """The backend that runs where that one is asked for."""
        spec = self.model.spec
        with registry.use_backend(backend):
            if self.explicit:
                work = ADMITTED_AS.get(self.op, device_check.GRADIENT_OF_R)
                return str(kernels.select(self.model.kernel_levels()[0], self.x, work).name)
            return registry.select(spec, self.x, self.precision, ADMITTED_AS.get(self.op, device_check.PROX)).name

    def _by_plain(self, plain: Eager | Compiled, x: Tensor, v: Tensor) -> Tensor:
        """A work but training and inversion, by plain torch."""
        if self.op == "value":
            return plain.value(x)
        if self.op == "hvp":
            return plain.hvp(x, v)
        if self.op == "prox":
            return plain.prox(x).detach()
        image = self.blur.A_adjoint(x)
        for _ in range(STEPS):
            gradient = self.blur.A_adjoint(self.blur.A(image) - x)
            image = plain.prox(image - STEP_SIZE * gradient).detach()
        return image

    def _by_model(self, model, x: Tensor, v: Tensor) -> Tensor:
        """The same by a model of the package."""
        sigma = self.sigma
        if self.op == "value":
            return model.prior(x, sigma) if self.explicit else model.potential(x, sigma)
        if self.op == "gradient of R":
            return model.grad_prior(x, sigma)
        if self.op == "hvp":
            return model.hessian_product(x, v, sigma) if self.explicit else model.hvp(x, v, sigma)
        if self.op == "prox":
            return model(x, sigma)
        start = self.blur.A_adjoint(x)
        options = {"step_size": STEP_SIZE, "strength": 1.0, "max_iter": STEPS, "tol": 0.0, "x0": start}
        return solvers.pgd(x, self.blur, model, sigma=sigma, **options).x


@dataclass(frozen=True)
class Provider:
    """One way to do a work."""

    name: str
    backend: str
    precision: str
    call: Callable[[], object]
    result: Callable[[object], Tensor]  # from what `call` returned, comparable with Setup.truth


def ours(name: str, asked: str, setup: Setup) -> Provider:
    """The package, with the backend asked for; it owns a copy of the model where it trains."""
    model = copy.deepcopy(setup.model)
    if not setup.explicit:
        model.precision = setup.precision
    x, v, target, sigma = setup.x, setup.v, setup.target, setup.sigma
    optimizer = ProjectedAdam(model, lr=LEARNING_RATE) if setup.op == "step" else None

    def step():
        loss = (model(x, sigma) - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def call():
        with registry.use_backend(asked):
            if setup.op == "step":
                return step()
            with torch.no_grad():
                if setup.op == "invert":
                    return invert(model, x, sigma=sigma, tol=INVERT_TOL).preimage
                return setup._by_model(model, x, v)

    def gradients(_):
        """Those of the first step, anew: an optimizer may project them in place."""
        own = copy.deepcopy(setup.model)
        own.precision = setup.precision
        with registry.use_backend(asked):
            return setup.gradients_of(own, x, target)

    read = gradients if setup.op == "step" else reader(setup)
    return Provider(name, setup.runs(asked), DTYPES[setup.precision], call, read)


def plain(name: str, setup: Setup, compiled: bool = False, channels_last: bool = False) -> Provider:
    """Plain torch: autograd through the module, or torch.compile of it."""
    model = copy.deepcopy(setup.model)
    network = Compiled(model) if compiled else Eager(model, channels_last)
    x, v, target = setup.x, setup.v, setup.target
    if channels_last:
        x, v, target = (t.contiguous(memory_format=torch.channels_last) for t in (x, v, target))
    backend = "torch.compile" if compiled else "torch eager"
    if setup.op == "step":
        fused = {"fused": True} if compiled else {}  # whoever compiles takes torch's fused Adam too
        optimizer = torch.optim.Adam(network.potential.parameters(), lr=LEARNING_RATE, **fused)

        def step():
            network.loss_gradients(x, target)
            optimizer.step()
            network.potential.clamp_()

        return Provider(name, backend, "float32", step, lambda _: setup.within_cone(network.potential.gradients()))
    if setup.op == "invert":
        inverted = functools.partial(plain_torch.invert, lambda y: network.prox(y).detach(), x, INVERT_TOL)
        return Provider(name, backend, "float32", inverted, reader(setup))
    return Provider(name, backend, "float32", lambda: setup._by_plain(network, x, v), reader(setup))


def reader(setup: Setup) -> Callable[[Tensor], Tensor]:
    """What is compared with the truth: the leading samples, or f(y) in float64 for an inversion."""
    if setup.op != "invert":
        return lambda result: result[setup.kept]
    if not setup.has_plain:
        wide = copy.deepcopy(setup.model).double()
        return lambda y: wide(y.double(), setup.sigma).detach()
    truth = Eager(copy.deepcopy(setup.model).double())
    return lambda y: truth.prox(y.double()).detach()


def relative_error(result: Tensor, truth: Tensor) -> float:
    """|result - truth| / |truth|, L2, in float64; 0 for nothing."""
    if not truth.numel():
        return 0.0
    return ((result.detach().double() - truth).norm() / truth.norm()).item()
