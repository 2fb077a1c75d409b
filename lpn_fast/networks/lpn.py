"""The module every learned proximal network is.

    f(x) = grad psi(x) = prox_R(x),        R(f(u)) = <u, f(u)> - 1/2 |f(u)|^2 - psi(u)

psi is convex whatever values the parameters hold, because non-negative weights are projected where they are
packed for evaluation (ops/packing.py). Nothing is stored for autograd unless a gradient is required.
"""

import copy
import dataclasses
import warnings
from typing import Self

import torch
from torch import Tensor, nn

from ..algebra.parameters import layout
from ..algebra.spec import Spec
from ..ops import functions, network, registry
from ..ops.packing import constrained, pack
from ..ops.precision import checked as checked_precision
from ..ops.solve import EquationSolution, SolveOptions, Verdict, differentiable_solution
from ..per_sample import dot
from .initialise import initialise_
from .inputs import checked_input, checked_strength, warn_of_units
from .summary import Summarised

# tolerance of the equation behind prox of strength below 1: a few units of rounding above what each type can reach
_PROX_TOL = {torch.float32: 1e-6, torch.float64: 1e-12}


class LPN(Summarised):
    """A learned proximal network, described by a `Spec`.

    Most users build one of its families (`MLPLPN`, `ConvLPN`, `paper_network`) or load one.

    Parameters
    ----------
    spec : Spec
        The architecture. Parameters start as `initialise_` draws them.

    Attributes
    ----------
    spec : Spec
    card : dict
        What is known of the model beyond its weights (noise level, value range, training); saved with it.
    packed_hook : callable or None
        Receives the gradient of P, (P,), before the rule for clamped weights, and returns what to use instead. The
        rule is not linear, so whoever averages or scales gradients among processes does it here.

    Notes
    -----
    Shapes below: x is (N, dim) for dense networks and (N, C, H, W) for convolutional ones, (N, C, D, H, W) for those
    of volumes, of the parameters' dtype and device. Under autocast a half-precision x is computed in the parameters'
    dtype.

    Examples
    --------
    >>> import lpn_fast as lf
    >>> lf.pretrained("fast-gray")  # doctest: +ELLIPSIS
    MixtureLPN 'fast-gray'
      input: gray images (N, 1, H, W), values in [0, 1]
      noise: sigma from 0.01 to 0.3, given with every call
      ...
    """

    def __init__(self, spec: Spec):
        super().__init__()
        self.spec = spec
        self.card: dict = {}
        self.packed_hook: network.Hook | None = None
        self._precision = "fp32"
        self.stages = nn.ModuleList(nn.Module() for _ in spec.stages)
        self._slots = layout(spec)
        self._places = [_place(slot.name) for slot in self._slots]
        for slot in self._slots:
            owner, name = self._owner(slot.name)
            owner.register_parameter(name, nn.Parameter(torch.zeros(slot.shape)))
        self.register_buffer("_constrained", constrained(spec), persistent=False)
        self.register_buffer("_log_levels", torch.tensor(spec.noise_levels).log(), persistent=False)
        initialise_(self)

    @property
    def precision(self) -> str:
        """Named precision of evaluations and their derivatives: "fp32", "tf32", "fp16" or "bf16" (ops/precision.py).

        Inputs, outputs and parameters keep their type. Inversion, `prox` of a strength below 1 and values of the
        prior are always computed in full precision.
        """
        return self._precision

    @precision.setter
    def precision(self, name: str) -> None:
        self._precision = checked_precision(name)

    @property
    def alpha(self) -> float:
        """Strong-convexity modulus of psi, in the convention alpha/2 |x|^2."""
        return self.spec.alpha

    @property
    def is_noise_conditional(self) -> bool:
        """Whether the network requires a noise level `sigma` with every call."""
        return bool(self.spec.noise_levels)

    @staticmethod
    def has_form_of(spec: Spec) -> bool:
        """Whether networks of this class have such a spec; checkpoints ask before they make one."""
        return True

    def with_border(self, border: str) -> Self:
        """A copy with the same weights that continues images by zeros, "zero", or mirrored, "mirror".

        It is an exact prox with the same bound on its gain. For frames under gates of single pixels: `FrameLPN` with
        such gates, `MixtureLPN`.

        Raises
        ------
        ValueError
            Another border, or another architecture.

        Examples
        --------
        >>> import lpn_fast as lf
        >>> lf.pretrained("fast-gray").with_border("mirror").extra_repr()
        'conv, channels=1, widths=[49, 128], beta=1, alpha=0.0001, border=mirror'
        """
        spec = dataclasses.replace(self.spec, border=border)
        model = copy.deepcopy(self)
        model.spec = spec
        return model

    def stores_activations(self, x: Tensor) -> bool:
        """Whether an evaluation on x, as `forward` takes it, writes activations to memory.

        A large batch is then better cut into pieces that a cache holds.
        """
        return registry.stores_activations(self.spec, x, self.precision)

    def forward(self, x: Tensor, sigma=None) -> Tensor:
        """f(x) = grad psi(x), the exact prox of the learned R.

        Parameters
        ----------
        x : Tensor, shape (N, dim), (N, C, H, W) or (N, C, D, H, W)
        sigma : float or Tensor, shape () or (N,), optional
            Noise level in x's units, positive; for noise-conditional networks only.

        Returns
        -------
        Tensor, shape of x
            Differentiable in x and the parameters; no graph is kept where none is required.

        Raises
        ------
        ValueError, TypeError
            Wrong shape, dtype, device or sigma; the message says what was seen and what is required.

        Warns
        -----
        RuntimeWarning
            Of trained models in evaluation mode on a CPU: images that look like 0..255 or hold NaN, a sigma far
            outside the training.

        Examples
        --------
        >>> import torch, lpn_fast as lf
        >>> lf.MLPLPN(dim=3)(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
        """
        f = self._evaluate(x, sigma, with_value=False)[1]
        if not self.training:
            warn_of_units(self.card, x, sigma)
        return f

    def potential(self, x: Tensor, sigma=None) -> Tensor:
        """psi(x), shape (N,). Arguments as for `forward`."""
        return self._evaluate(x, sigma, with_value=True)[0]

    def potential_and_prox(self, x: Tensor, sigma=None) -> tuple[Tensor, Tensor]:
        """(psi(x), f(x)), shapes (N,) and x's, from one evaluation. Arguments as for `forward`."""
        return self._evaluate(x, sigma, with_value=True)

    def hvp(self, x: Tensor, v: Tensor, sigma=None) -> Tensor:
        """grad^2 psi(x) v, of x's shape: the Jacobian of f, symmetric and positive semi-definite, times v.

        Parameters
        ----------
        x, v : Tensor, shape (N, dim), (N, C, H, W) or (N, C, D, H, W)
        sigma : as for `forward`
        """
        if v.shape != x.shape or v.dtype != x.dtype or v.device != x.device:
            required, seen = ((tuple(t.shape), t.dtype, str(t.device)) for t in (x, v))
            raise ValueError(f"v must match x in shape, dtype and device {required}, got {seen}")
        x, features, unit = self._checked(x, sigma)
        at = x if unit is None else x / unit
        return functions.hvp(self.spec, at, self.packed(), features, v.to(x.dtype).contiguous(), self._precision)

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
        """Proximal map of `strength` times the learned R: argmin_x 1/2 |x - z|^2 + strength R(x).

        Solves  t u + (1 - t) f(u) = z  for u, t = strength, for all samples at once, and returns f(u)
        (ops/solve/equation.py says why that is the global minimiser even where R is not convex).

        Parameters
        ----------
        z : Tensor, shape (N, dim), (N, C, H, W) or (N, C, D, H, W)
        strength : float or Tensor, shape () or (N,), in (0, 1], or above where f is known to allow it
            Weight t of the prior. 1 is a single evaluation of the network. t > 1 has a unique prox if
            Lip(f) < t / (t - 1), which `lipschitz_bound` decides.
        sigma : as for `forward`
        tol : float, optional
            Bound on |t u + (1 - t) f(u) - z| / max(|z|, |f(z)|), per sample; None is 1e-6 in float32 and 1e-12
            in float64. With a residual r the error of u is at most |r| / t.
        max_iter : int
            Most steps of the solver (L-BFGS), about one evaluation of the network each. Small t needs more.
        start : Tensor, shape of z, optional
            Where the search for u begins, e.g. the u of a nearby z from `prox_and_prior`; None is z.

        Returns
        -------
        Tensor, shape of z
            Differentiable, by the implicit function theorem, in z, strength and the parameters. A sample of z
            that holds NaN gives NaN.

        Raises
        ------
        ValueError
            strength not positive, or above 1 and not covered by the Lipschitz bound of f.

        Warns
        -----
        RuntimeWarning
            Samples that did not meet tol; they are returned as they are.

        Examples
        --------
        >>> import torch, lpn_fast as lf
        >>> lf.MLPLPN(dim=3).prox(torch.zeros(5, 3), strength=0.5).shape
        torch.Size([5, 3])
        """
        if _is_one(strength):
            return self(z, sigma)
        z, features, unit = self._checked(z, sigma)
        packed = self.packed()
        solution = self._solve(z, unit, strength, packed, features, tol, max_iter, start)
        f = solution.f
        if solution.u.requires_grad:
            f = functions.evaluate(self.spec, solution.u, packed, features, False)[1]
        return f if unit is None else unit * f

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
        """(x, R(x)): the prox of strength R at z, and the prior there at no extra cost.

            x = f(u) with  t u + (1 - t) f(u) = z,     R(x) = <u, x> - 1/2 |x|^2 - psi(u)

        Parameters
        ----------
        z, strength, sigma, tol, max_iter, start
            As for `prox`. R is the prior itself, not strength times it.
        return_preimage : bool
            Return (x, R(x), u): u is the `start` of the next call of an iteration.

        Returns
        -------
        x : Tensor, shape of z
        prior : Tensor, shape (N,), float64
            The three terms cancel, so they are summed and combined in float64; psi itself carries the rounding
            of the network's dtype. Exact at x whatever the residual of the equation was.
        """
        if _is_one(strength):
            u, (psi, x) = z, self._evaluate(z, sigma, with_value=True)
        else:
            z, features, unit = self._checked(z, sigma)
            solution = self._solve(z, unit, strength, self.packed(), features, tol, max_iter, start)
            u, psi, x = solution.u, solution.psi, solution.f
            if unit is not None:
                u, psi, x = unit * u, _squared(unit) * psi, unit * x
        prior = dot(torch.add(u, x, alpha=-0.5), x) - psi.double()
        return (x, prior, u) if return_preimage else (x, prior)

    def _solve(self, z, unit, strength, packed, features, tol, max_iter, start) -> EquationSolution:
        """The solution of the equation behind `prox`, in noise units where the network has them."""
        strength = checked_strength(self, strength, z)
        if start is not None:
            if start.shape != z.shape or start.dtype != z.dtype or start.device != z.device:
                required, seen = ((tuple(t.shape), t.dtype, str(t.device)) for t in (z, start))
                raise ValueError(f"start must match z in shape, dtype and device {required}, got {seen}")
            start = start.detach().contiguous()
        if unit is not None:
            z, start = z / unit, None if start is None else start / unit
        tol = _PROX_TOL[z.dtype] if tol is None else tol
        options = SolveOptions(self.spec, tol=tol, max_iter=max_iter)
        solution = differentiable_solution(options, z, strength, packed, features, start)
        unconverged = (solution.verdict != Verdict.CONVERGED) & (solution.verdict != Verdict.INVALID)
        if bool(unconverged.any()):
            warnings.warn(
                f"prox of strength below 1 did not converge for {int(unconverged.sum())} of {len(z)} samples: "
                f"relative residual up to {float(solution.residual[unconverged].max()):.1e}, above tol={tol:g}",
                RuntimeWarning,
                stacklevel=3,
            )
        return solution

    @torch.no_grad()
    def project_(self) -> "LPN":
        """Clamp the non-negative parameters in place, as optimizers need after a step. Returns self.

        Evaluation projects anyway; this keeps the stored weights where they act.
        """
        for slot in self._slots:
            if slot.nonnegative:
                getattr(*self._owner(slot.name)).clamp_(min=0)
        return self

    def project_gradients_(self) -> "LPN":
        """Project gradients in place onto what `project_` leaves free, in the coordinates of `step_`. Returns self.

        Nothing to do here; families with constraints that tie parameters together override it. The step that an
        optimizer makes of such gradients, times `step_scales`, is what `step_` takes (training/trainer.py).
        """
        return self

    def step_scales(self) -> dict[str, float]:
        """Positive factors on an optimizer's steps, by parameter name; empty where all are one."""
        return {}

    @torch.no_grad()
    def step_(self, steps: dict[str, Tensor]) -> None:
        """Add scaled steps of an optimizer, each shaped like the parameter of that name; in place, without projection.

        Families whose `project_gradients_` gives gradients in other coordinates override it and step in these.
        """
        for name, step in steps.items():
            getattr(*self._owner(name)).add_(step)

    def packed(self) -> Tensor:
        """All parameters in one vector P, shape (P,), projected; differentiable in the parameters."""
        return network.hooked(pack(self.spec, self._in_order(), self._constrained), self.packed_hook)

    def _in_order(self) -> list[Tensor]:
        """The parameters in the order of the layout."""
        if not torch.compiler.is_compiling():
            stages = self._modules["stages"]._modules.values()
            owners = [self._parameters, *(stage._parameters for stage in stages)]
            try:  # `getattr` of a module costs ten times this look-up
                return [owners[i][name] for i, name in self._places]
            except KeyError:  # the parameter was moved elsewhere, e.g. by torch's parametrizations
                pass
        owners = [self, *self.stages]
        return [getattr(owners[i], name) for i, name in self._places]

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        """The submodule that holds the parameter `stages.0.core` or `linear`, and its name there."""
        owner, last = _place(name)
        return (self.stages[owner - 1] if owner else self), last

    def _evaluate(self, x: Tensor, sigma, with_value: bool) -> tuple[Tensor, Tensor]:
        x, features, unit = self._checked(x, sigma)
        psi, f = network.evaluate(
            self.spec, x if unit is None else x / unit, self._in_order(), self._constrained, features, with_value,
            self._precision, self.packed_hook,
        )  # fmt: skip
        if unit is not None:
            psi, f = _squared(unit) * psi if with_value else psi, unit * f
        return psi, f

    def _checked(self, x: Tensor, sigma) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x, the noise features and the unit of x, as `checked_input` gives them."""
        return checked_input(self.spec, self._log_levels, x, sigma)

    def extra_repr(self) -> str:
        spec = self.spec
        widths = [stage.width for stage in spec.stages]
        kind = "conv of volumes" if spec.ndim == 3 else spec.kind
        more = f", border={spec.border}" if spec.is_mirrored else ""
        if spec.reads_patches and spec.spacing > 1:
            more += f", spacing={spec.spacing}"
        return f"{kind}, channels={spec.channels}, widths={widths}, beta={spec.beta:g}, alpha={spec.alpha:g}{more}"


def _place(name: str) -> tuple[int, str]:
    """(owner, attribute) of the parameter `stages.0.core` or `linear`; owner 0 is the network, l + 1 its stage l."""
    *prefix, last = name.split(".")
    return (int(prefix[1]) + 1 if prefix else 0), last


def _squared(unit: Tensor) -> Tensor:
    """(N, 1, ...) -> (N,): what psi in noise units is multiplied by."""
    return unit.flatten().square()


def _is_one(strength) -> bool:
    return isinstance(strength, int | float) and strength == 1
