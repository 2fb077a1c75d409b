"""What a user would run instead: A, the published way, and C, the compiled way. Plain torch, own code.

    A   an nn.Module for psi; f = autograd.grad(psi.sum(), x, create_graph=True), as the published code does in
        evaluation and in training; convolutions channels-last too (`A-cl`), and the faster of the two is A
    C   torch.compile of torch.func.grad of psi, of its directional derivative, and of the whole loss gradient

The modules read their architecture and parameters from a network of the package, so that all run the same
function; their potential is written as the published one is, with torch's own layers.
"""

import shutil
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..algebra.noise import noise_features
from ..algebra.parameters import layout
from ..algebra.patches import Patches
from ..algebra.spec import Spec
from ..algebra.windows import Windows


class Network(Protocol):
    """What is read of a network."""

    spec: Spec

    def get_parameter(self, name: str) -> Tensor: ...


class PlainPotential(nn.Module):
    """psi as a plain module: dense layers or convolutions, softplus, resized inputs, linear and squared heads.

    A noise-conditional network is its potential at sigma = 1, where x in units of the noise is x itself.
    """

    def __init__(self, model: Network):
        super().__init__()
        spec = model.spec
        if spec.quadratic:
            raise ValueError("PlainPotential has no quadratic term, got a network with one")
        self.spec = spec
        self.features = noise_features(torch.ones(1), spec.noise_levels)[0] if spec.noise_levels else None
        self.slots = layout(spec)
        for slot in self.slots:
            value = model.get_parameter(slot.name).detach().clone()
            self.register_parameter(slot.name.replace(".", "_"), nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        """psi(x), (N,)."""
        z, psi, at, patches = None, 0.0, x, None
        if self.spec.is_mirrored:
            height, width = x.shape[2:]
            patches = Patches((height, width), self.spec.stages[0].skip_kernel, x, self.spec.spacing)
            at = patches.extended(x)
        for index, stage in enumerate(self.spec.stages):
            parts = [self._skip(index, at)] if stage.skip_kernel or self.spec.is_dense else []
            parts += [self._core(index, z)] if index and not stage.window else []
            u = sum(parts[1:], start=parts[0]) if parts else None
            if stage.window:
                z = self._in_contexts(index, z, patches)
            elif index + 1 < len(self.spec.stages) and self.spec.stages[index + 1].window:
                z = u
            elif stage.competing:
                z = (self.spec.beta * u).logsumexp(1, keepdim=True) / self.spec.beta
            else:
                z = u * u if self.spec.square_first and not index else F.softplus(u, self.spec.beta)
            for name, power in (("head", 1), ("head_squared", 2)):
                head = self._of(index, name)
                if head is not None:
                    powered = z if power == 1 else z * z
                    powered = powered if patches is None else powered * patches.weights
                    psi = psi + (powered @ head if self.spec.is_dense else powered.sum((2, 3)) @ head)
        if self.spec.linear:
            psi = psi + (x if self.spec.is_dense else x.sum((2, 3))) @ self.linear
        if self.spec.constant:
            psi = psi + self.constant
        return psi + 0.5 * self.spec.alpha * x.square().flatten(1).sum(1)

    def _in_contexts(self, index: int, u: Tensor, patches: Patches | None) -> Tensor:
        """The soft maximum over contexts of averaged soft maxima over the experts' u, (N, 1, h, w)."""
        ones = [u.new_ones(side) for side in u.shape[2:]]
        average = Windows(self.spec.stages[index].window, *(ones if patches is None else patches.axis_weights))
        odds, log_s = self._of(index, "odds"), self._of(index, "sharpness")
        odds, log_s = (odds[0], log_s[0]) if self.features is None else (
            torch.tensordot(self.features.to(odds), odds, 1), self.features.to(log_s) @ log_s
        )  # fmt: skip
        largest = u.detach().amax(1, keepdim=True)
        sums = (odds @ (u - largest).exp().flatten(2)).unflatten(2, u.shape[2:])
        y = average(sums.log() + largest)
        v = log_s.exp() * y + self._bias(index)[:, None, None]
        return v.logsumexp(1, keepdim=True) / log_s.exp()

    def gradients(self) -> Tensor:
        """All parameters' gradients in the package's layout, (P,); zero where autograd left none (c0, in f)."""
        parameters = [self.get_parameter(slot.name.replace(".", "_")) for slot in self.slots]
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])

    @torch.no_grad()
    def clamp_(self) -> None:
        """Project the non-negative weights, as the published training does after each step."""
        for slot in self.slots:
            if slot.nonnegative:
                self.get_parameter(slot.name.replace(".", "_")).clamp_(min=0)

    def _of(self, index: int, name: str) -> Tensor | None:
        return self._parameters.get(f"stages_{index}_{name}")

    def _skip(self, index: int, x: Tensor) -> Tensor:
        weight, bias, stage = self._of(index, "skip"), self._bias(index), self.spec.stages[index]
        if self.spec.is_dense:
            return F.linear(x, weight, bias)
        if stage.resize > 1:
            x = F.interpolate(x, scale_factor=1 / stage.resize, mode="bilinear", align_corners=False)
        return F.conv2d(x, weight, bias, stage.skip_stride, 0 if self.spec.is_mirrored else stage.skip_padding)

    def _core(self, index: int, z: Tensor) -> Tensor:
        weight, stage = self._of(index, "core"), self.spec.stages[index]
        if self.spec.is_dense:
            return F.linear(z, weight)
        bias = None if stage.skip_kernel else self._bias(index)
        return F.conv2d(z, weight, bias, stage.stride, stage.padding)

    def _bias(self, index: int) -> Tensor | None:
        bias, noise = self._of(index, "bias"), self._of(index, "noise")
        return bias if noise is None else bias + noise @ self.features.to(noise)


class Eager:
    """A: autograd with create_graph; `channels_last` converts the module and its inputs."""

    def __init__(self, model: Network, channels_last: bool = False):
        self.potential = PlainPotential(model)
        self.channels_last = channels_last
        if channels_last:
            self.potential.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def value(self, x: Tensor) -> Tensor:
        return self.potential(self._in(x))

    def prox(self, x: Tensor) -> Tensor:
        """f(x), not detached: training differentiates it again."""
        x = self._in(x).detach().requires_grad_()
        return torch.autograd.grad(self.potential(x).sum(), x, create_graph=True)[0]

    def hvp(self, x: Tensor, v: Tensor) -> Tensor:
        """grad^2 psi(x) v by differentiating <v, f> once more."""
        x = self._in(x).detach().requires_grad_()
        f = torch.autograd.grad(self.potential(x).sum(), x, create_graph=True)[0]
        return torch.autograd.grad(f, x, self._in(v))[0]

    def loss_gradients(self, y: Tensor, target: Tensor) -> None:
        """Gradients of the mean squared error into .grad."""
        loss = (self.prox(y) - target).square().mean()
        self.potential.zero_grad(set_to_none=True)
        loss.backward()

    def _in(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x


class Compiled:
    """C: torch.compile of torch.func.grad; shapes are static, warm-up happens at the first call."""

    def __init__(self, model: Network, mode: str | None = None):
        self.potential = PlainPotential(model)

        def psi(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(self.potential, parameters, (x,)).sum()

        prox = torch.func.grad(psi, argnums=1)

        def hvp(parameters, x, v):
            return torch.func.vjp(lambda t: prox(parameters, t), x)[1](v)[0]

        def loss(parameters, y, target):
            return (prox(parameters, y) - target).square().mean()

        def value(parameters, x):
            return torch.func.functional_call(self.potential, parameters, (x,))

        self._prox, self._hvp, self._gradient, self._value = (
            torch.compile(function, dynamic=False, mode=mode) for function in (prox, hvp, torch.func.grad(loss), value)
        )

    def value(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self._value(self._detached(), x)

    def prox(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self._prox(self._detached(), x)

    def hvp(self, x: Tensor, v: Tensor) -> Tensor:
        with torch.no_grad():
            return self._hvp(self._detached(), x, v)

    def loss_gradients(self, y: Tensor, target: Tensor) -> None:
        with torch.no_grad():
            gradients = self._gradient(self._detached(), y, target)
        for name, parameter in self.potential.named_parameters():
            parameter.grad = gradients[name]

    def _detached(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.potential.named_parameters()}


def why_no_compiler() -> str | None:
    """None if torch.compile can build kernels here, else the reason."""
    compiler = next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None)
    return None if compiler else "torch.compile needs a C++ compiler; none of g++, clang++, c++ is on the PATH"


def invert(prox: Callable[[Tensor], Tensor], x: Tensor, tol: float, max_iter: int = 500) -> Tensor:
    """y with |f(y) - x| <= tol |x|: torch's L-BFGS on  sum_n psi(y_n) - <x_n, y_n>,  given its gradient.

    The batch is one problem, as torch.optim.LBFGS has it, and so is the norm: easier than lf.invert's, which holds for
    every sample. Steps follow the gradient alone, without line search: no evaluation is spent on anything else.
    """
    y = x.detach().clone()
    optimizer = torch.optim.LBFGS([y], lr=1.0, max_iter=1, tolerance_grad=0.0, tolerance_change=0.0)
    goal = tol * x.norm()

    def closure():
        y.grad = (prox(y) - x).detach()
        return y.grad.norm()  # the value is never used

    for _ in range(max_iter):
        if optimizer.step(closure) <= goal:
            break
    return y
