"""An explicit prior: R is learned itself, certified weakly convex, and its prox is a solve with an error bound.

In units of the noise, with the potentials of ops/explicit/potentials.py on all patches of an image, d = 2, or volume,

    R(x) = 1/k^d sum_p w_p sum_g P_g(U_g . (A patch_p)^2),        U_gj = mu softmax over g and a slack
    f(y) = argmin_x 1/2 |x - y|^2 + R(x),                         |x - f(y)| <= |x + grad R(x) - y| / (1 - mu)

The other families learn psi, have f in one pass and R by an inversion. Here R(x), grad R(x) and the preimage
x + grad R(x) are one pass each, and f is the solve: unique, because 1/2 |x - y|^2 + R(x) is (1 - mu)-strongly convex
whatever the parameters are. R >= 0, and patch means carry no potential. The rows of A are an orthonormal basis of
patches, or free filters whose spectra are limited (networks/explicit_filters.py).
"""

import torch
from torch import Tensor, nn

from ..ops.explicit import Potentials, Solution, SolveLimits, prior_gradient, prior_value, proximal_point
from ..ops.explicit import potentials as passes
from ..ops.explicit.descent import linear_solve
from ..ops.explicit.level import Level
from ..ops.tracing import uncompiled
from ..per_sample import broadcast, dot, norm
from .explicit_filters import limit_, mirrored, peak
from .explicit_potentials import potentials_at
from .explicit_spec import ExplicitSpec
from .explicit_start import draw_start_
from .families import check_reads_noise, noise_knots
from .frame import hold_orthonormal_, keep_rotations_
from .inputs import checked_images, checked_levels, warn_of_units
from .registry import register
from .summary import Summarised

TOL = {torch.float32: 1e-5, torch.float64: 1e-12}  # for |residual| / |y| of a solve: what each type surely reaches
# In training mode. A solve that stops early trains another map than the one that is used: potentials grow without end.
TRAINING_TOL, TRAINING_ADJOINT_TOL = 3e-4, 3e-2  # for the solve, and the linear system behind its derivatives
STEPS = {"atoms": 1.5, "seeds": 1.5, "shares": 15.0, "far": 5.0, "bends": 15.0, "tails": 15.0}  # sizes for an optimizer


@register(
    "explicit",
    "R itself is learned and evaluated in one pass; its prox is a certified solve",
    {
        "kernel": "skip_kernel",
        "groups": "hidden",
        "filters": "filters",
        "blocks": "blocks",
        "joint": "joint",
        "bend": "bend",
    },
    noise="always",
    own_start=True,
)
class ExplicitLPN(Summarised):
    """Noise-conditional prior R of images with one-pass values and gradients, and its exact prox by a solve.

    Parameters
    ----------
    channels : int
        Image channels.
    kernel : int
        Side k of the patches, 2 to 15; there are n = channels k^ndim atoms.
    groups : int
        Groups M of coefficients, each with one potential.
    concavity : float
        mu in (0, 1): R + mu/2 |x|^2 is convex.
    bend : float
        Bound on rho^2, above 1: the curvature of R is at most mu (bend - 1), which bounds the steps of a solve.
    sigma_conditional : True or tuple of float
        Knots of the noise level between which potentials may vary; every call takes `sigma`.
    coarse_kernel, coarse_groups : int
        The same for patches of patch means (ops/explicit/coarse.py), which see coarse_kernel times as far; 0 for none.
    filters : int
        Free filters in place of the n atoms, a multiple of four: seeds and their mirror images. 0 for the atoms.
    ndim : 2 or 3
        Axes of space. With 3 images are volumes, x is (N, C, D, H, W), and torch's operations compute everything.
    blocks, joint : int
        Free filters in so many blocks of neighbours, each with groups of its own, and how many of the groups see all
        filters; groups come in fours of mirror images, too (networks/explicit_blocks.py). 0 blocks: all see all.

    Notes
    -----
    A prior is made in evaluation mode; in training mode solves end, if not told otherwise, where derivatives are
    accurate enough for an optimizer's steps.

    x is (N, C, H, W) or (N, C, D, H, W), of the parameters' dtype; `sigma` is a number or (N,), in x's units. R is in
    x's units too: sigma^2 times its value in units of the noise.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> model = lf.ExplicitLPN(1, kernel=4, groups=12)
    >>> x = torch.rand(2, 1, 37, 50)
    >>> model.prior(x, sigma=0.1).shape, model(x, sigma=0.1).shape
    (torch.Size([2]), torch.Size([2, 1, 37, 50]))
    """

    seeds: Tensor  # of free filters; else `atoms`
    shares: Tensor
    far: Tensor
    bends: Tensor
    tails: Tensor

    def __init__(
        self,
        channels: int,
        kernel: int = 7,
        groups: int = 64,
        concavity: float = 0.98,
        bend: float = 60.0,
        sigma_conditional: bool | tuple[float, ...] = True,
        coarse_kernel: int = 0,
        coarse_groups: int = 32,
        filters: int = 0,
        ndim: int = 2,
        blocks: int = 0,
        joint: int = 0,
    ):
        super().__init__()
        check_reads_noise(sigma_conditional)
        knots, coarse = noise_knots(sigma_conditional), (coarse_kernel, coarse_groups if coarse_kernel else 0)
        self.spec = ExplicitSpec(
            channels, kernel, groups, concavity, bend, knots, *coarse, filters, ndim, blocks, joint
        )
        self.card: dict = {}
        for slot in self.spec.slots():
            self.register_parameter(slot.name, nn.Parameter(torch.empty(slot.shape)))
        draw_start_(self)
        self.eval()

    @classmethod
    def of_spec(cls, spec: ExplicitSpec) -> "ExplicitLPN":
        """A fresh model of that architecture."""
        levels = spec.noise_levels
        coarse = spec.coarse_kernel, spec.coarse_groups
        rest = *coarse, spec.filters, spec.ndim, spec.blocks, spec.joint
        return cls(spec.channels, spec.kernel, spec.groups, spec.concavity, spec.bend, levels, *rest)

    def levels(self) -> dict[str, tuple[int, int]]:
        """Prefix of the parameters of a level -> (side of its patches, groups)."""
        spec = self.spec
        fine = {"": (spec.kernel, spec.groups)}
        return fine | ({"coarse_": (spec.coarse_kernel, spec.coarse_groups)} if spec.coarse_kernel else {})

    def of_level(self, prefix: str) -> tuple[Tensor, ...]:
        """Atoms (n, C, k, k), shares, far, bends, tails of a level."""
        atoms = mirrored(self.seeds) if self.spec.filters else getattr(self, prefix + "atoms")
        return atoms, *(getattr(self, prefix + name) for name in ("shares", "far", "bends", "tails"))

    # ---- what solvers and others look up

    @property
    def alpha(self) -> float:
        """Strong-convexity modulus of psi, 1 / (1 + the largest curvature of R)."""
        with torch.no_grad():
            levels = torch.tensor(self.spec.noise_levels, dtype=self.far.dtype, device=self.far.device)
            pot = self.potentials(levels)
            curvatures = [level.curvature().max() for level in (pot, pot.coarse) if level is not None]
            return 1 / (1 + float(max(curvatures)))

    @property
    def is_noise_conditional(self) -> bool:
        return True

    precision = "fp32"

    @property
    def largest_gain(self) -> float:
        """limsup |f(x)| / |x|: gradients of R are bounded, so that f passes what is large."""
        return 1.0

    def packed(self) -> Tensor:
        """All parameters in one vector, shape (P,)."""
        return torch.cat([getattr(self, slot.name).flatten() for slot in self.spec.slots()])

    def skewness(self) -> float:
        """By how much patches count too much: the largest eigenvalue of A A^T - I, or of the spectra of filters - I."""
        if self.spec.filters:
            return peak(self.of_level("")[0].detach()) - 1
        errors = []
        for prefix in self.levels():
            atoms = getattr(self, prefix + "atoms").detach().flatten(1).double()
            errors.append(float(torch.linalg.matrix_norm(atoms @ atoms.T - torch.eye(len(atoms)).to(atoms), 2)))
        return max(errors)

    def kernel_levels(self) -> list[Level]:
        """What kernels are chosen by, one for each level."""
        spec = self.spec
        return [Level(spec.channels, k, groups, spec.filters, spec.ndim) for k, groups in self.levels().values()]

    def stores_activations(self, x: Tensor) -> bool:
        return False

    def potentials(self, sigma: Tensor) -> Potentials:
        """Atoms and potentials at noise levels sigma, (N,); differentiable in the parameters."""
        return potentials_at(self, sigma)

    # ---- one pass

    @uncompiled
    def prior(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """R(x), (N,) float64, differentiable in x and the parameters."""
        x, unit, pot = self._checked(x, sigma)
        return unit.flatten().double().square() * prior_value(pot, x / unit, self.spec.kernel)

    @uncompiled
    def grad_prior(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """grad R(x), of x's shape, differentiable once in x and the parameters."""
        x, unit, pot = self._checked(x, sigma)
        return unit * prior_gradient(pot, x / unit, self.spec.kernel)

    @torch.no_grad()
    def prior_and_grad(self, x: Tensor, sigma: float | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(R(x), grad R(x)) from one pass, without a graph."""
        x, unit, pot = self._checked(x, sigma)
        value, gradient = passes.value_and_gradient(pot, x / unit, self.spec.kernel)
        return unit.flatten().double().square() * value, unit * gradient

    def preimage(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """x + grad R(x): the y with f(y) = x."""
        return x + self.grad_prior(x, sigma)

    @torch.no_grad()
    def hessian_product(self, x: Tensor, v: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """The Hessian of R at x times v."""
        x, unit, pot = self._checked(x, sigma)
        return passes.hvp(pot, x / unit, v, self.spec.kernel)

    @torch.no_grad()
    def error_bound(
        self, x: Tensor, y: Tensor, sigma: float | Tensor | None = None, strength: float | Tensor = 1.0
    ) -> Tensor:
        """|x + t grad R(x) - y| / (1 - t mu), (N,) float64: x is at most so far from prox_{tR}(y), t = `strength`."""
        if isinstance(strength, Tensor):
            strength = strength.double()
        residual = x + broadcast(strength, x) * self.grad_prior(x, sigma) - y
        return norm(residual) / (1 - strength * self.spec.concavity)

    # ---- the prox

    def forward(self, x: Tensor, sigma=None, *, tol: float | None = None, start: Tensor | None = None) -> Tensor:
        """f(x) = prox_R(x), by a solve from `start`, or x, to a residual of tol |x|; see `prox`."""
        f = self.prox(x, 1.0, sigma, tol=tol, start=start)
        if not self.training:
            warn_of_units(self.card, x, sigma)
        return f

    @uncompiled  # iterations that end by what they see are no graph
    def prox(
        self,
        z: Tensor,
        strength: float | Tensor = 1.0,
        sigma=None,
        *,
        tol: float | None = None,
        max_iter: int = 500,
        start: Tensor | None = None,
    ) -> Tensor:
        """argmin_x 1/2 |x - z|^2 + strength R(x).

        Parameters
        ----------
        z : Tensor, shape (N, C, H, W)
        strength : float or Tensor, shape () or (N,), in (0, 1 / mu)
            Weight t of the prior.
        tol : float, optional
            Bound on |x + t grad R(x) - z| / |z|; None is 1e-5 in float32 and 1e-12 in float64.
        max_iter : int
            Most steps of L-BFGS, one pass each.
        start : Tensor, shape of z, optional
            An estimate of the result; None is z.

        Returns
        -------
        Tensor, shape of z
            Differentiable, by the implicit function theorem, in z, strength and the parameters. `error_bound` says
            how far it is from the exact prox.

        Raises
        ------
        ValueError
            strength outside (0, 1 / mu), where the prox need not be unique.
        """
        return self._solved(z, strength, sigma, tol, max_iter, start)[0]

    @torch.no_grad()
    def prox_and_prior(
        self,
        z: Tensor,
        strength: float | Tensor = 1.0,
        sigma=None,
        *,
        tol: float | None = None,
        max_iter: int = 500,
        start: Tensor | None = None,
        return_preimage: bool = False,
    ) -> tuple[Tensor, ...]:
        """(x, R(x)), x = prox_{tR}(z); with `return_preimage` also u = x + grad R(x). Arguments as for `prox`.

        `start` is the u of a call before, as solvers hand it over, and not used: z = x + t grad R(x) lies nearer to x.
        """
        x = self._solved(z, strength, sigma, tol, max_iter, None)[0]
        value, gradient = self.prior_and_grad(x, sigma)
        return (x, value, x + gradient) if return_preimage else (x, value)

    def potential(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """psi(x) = <x, f(x)> - 1/2 |f(x)|^2 - R(f(x)), (N,)."""
        return self.potential_and_prox(x, sigma)[0]

    def potential_and_prox(self, x: Tensor, sigma: float | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(psi(x), f(x)), shapes (N,) and x's."""
        f = self(x, sigma)
        return dot(torch.add(x, f, alpha=-0.5), f).to(x) - self.prior(f, sigma).to(x), f

    @torch.no_grad()
    def hvp(self, x: Tensor, v: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """The Jacobian of f at x, (I + grad^2 R(f(x)))^-1, times v."""
        f = self(x, sigma)
        f, unit, pot = self._checked(f, sigma)
        return linear_solve(pot, f / unit, torch.ones_like(unit.flatten()), v, self.spec.kernel, TOL[x.dtype])

    def _solved(self, z, strength, sigma, tol, max_iter, start) -> tuple[Tensor, Solution]:
        z, unit, pot = self._checked(z, sigma)
        if start is not None:
            if start.shape != z.shape or start.dtype != z.dtype:
                raise ValueError(f"start must match z, {tuple(z.shape)}, got {tuple(start.shape)} of {start.dtype}")
            start = start / unit
        weight = torch.as_tensor(strength, dtype=z.dtype, device=z.device).expand(len(z))
        if not bool(((weight > 0) & (weight * self.spec.concavity < 1)).all()):
            limit = 1 / self.spec.concavity
            raise ValueError(f"strength must be positive and below {limit:g}, got {strength}")
        usual, adjoint = (TRAINING_TOL, TRAINING_ADJOINT_TOL) if self.training else (TOL[z.dtype], None)
        limits = SolveLimits(usual if tol is None else tol, max_iter)
        x, solution = proximal_point(pot, z / unit, weight, self.spec.kernel, limits, start, adjoint)
        return unit * x, solution

    # ---- training

    def project_(self) -> "ExplicitLPN":
        """The nearest orthonormal atoms, their means in place, or near filters of limited spectra; returns self."""
        with torch.no_grad():
            if self.spec.filters:
                limit_(self.seeds)
                return self
            for prefix, (k, _) in self.levels().items():
                atoms = getattr(self, prefix + "atoms")
                scaled = atoms / k
                hold_orthonormal_(scaled)
                atoms.copy_(scaled * k)
        return self

    def step_scales(self) -> dict[str, float]:
        """What steps of an optimizer are multiplied by: most parameters are logarithms."""
        return {slot.name: STEPS[slot.name.removeprefix("coarse_")] for slot in self.spec.slots()}

    @torch.no_grad()
    def step_(self, steps: dict[str, Tensor]) -> None:
        """Add steps, each shaped like the parameter of that name; in place, without projection."""
        for name, step in steps.items():
            getattr(self, name).add_(step)

    def project_gradients_(self) -> "ExplicitLPN":
        """The gradient of the atoms reduced to rotations that leave the means alone; returns self."""
        for prefix, (k, _) in self.levels().items() if not self.spec.filters else ():
            atoms = getattr(self, prefix + "atoms")
            if atoms.grad is not None:
                scaled = atoms.detach() / k
                scaled.grad = atoms.grad
                keep_rotations_(scaled)
        return self

    # ---- arguments

    def _checked(self, x: Tensor, sigma) -> tuple[Tensor, Tensor, Potentials]:
        """x, its unit (N, 1, ..., 1), and the potentials at its noise levels."""
        spec = self.spec
        if self.far.dtype not in TOL:
            raise TypeError(
                f"the prior must be float32 or float64 to be solved, got {self.far.dtype}; use model.float()"
            )
        x = checked_images(x, (spec.channels, *spec.axes), self.far)
        level = checked_levels(sigma, x, conditional=True)  # (N,)
        assert level is not None
        own = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1)  # (N,), or (1,) if all share it
        return x.contiguous(), level.view(-1, *(1,) * (x.dim() - 1)), self.potentials(own)

    def extra_repr(self) -> str:
        spec = self.spec
        shown = "channels", "kernel", "filters", "groups", "blocks", "joint", "concavity", "bend"
        return ", ".join(f"{name}={getattr(spec, name):g}" for name in shown if getattr(spec, name))
