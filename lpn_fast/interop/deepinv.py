"""A learned proximal network as a denoiser and as an explicit prior of deepinv, and operators both ways.

    LPNDenoiser    f(x), for deepinv's PnP and RED priors, training and metrics
    LPNPrior       R itself:  fn = R,  grad R(x) = u - x,  prox(x, gamma) = prox_{gamma R}(x) = f(u),   0 < gamma <= 1
                   with the preimage u of  gamma u + (1 - gamma) f(u) = x

deepinv's optimizers call prior.prox(x, sigma, gamma = lambda * stepsize) and then prior(x_new) for the cost. The
second needs u with f(u) = x_new, which the first has just had; it is kept, so the cost is free. With a prox that
follows gamma, `lambda_reg` and `stepsize` mean in deepinv what they say, as long as their product is at most 1.

Needs deepinv 0.5 (extra [deepinv]).
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ..contract import check_channels_second
from ..networks import LPN
from ..networks.inputs import checked_images, checked_network
from ..physics import GaussianNoise, Physics, PoissonNoise
from ..prior import prior as prior_value

try:
    import deepinv
    from deepinv.models import Denoiser
    from deepinv.optim import Prior
    from deepinv.physics import LinearPhysics
except ImportError as error:
    raise ImportError(
        f'lpn_fast.interop.deepinv needs deepinv ({error}): pip install "lpn-fast[deepinv]"', name=error.name
    ) from error

__all__ = ["LPNDenoiser", "LPNPrior", "from_deepinv_physics", "half_quadratic_cost", "to_deepinv_physics"]


class LPNDenoiser(Denoiser):
    """f(x) = prox_R(x) with deepinv's arguments.

    Parameters
    ----------
    network : LPN
        Convolutional, of images. One of a single channel takes colour images plane by plane, which is an exact prox
        again.
    sigma : float, optional
        Noise level of calls that give none; None is the middle one of a noise-conditional network's levels.

    Raises
    ------
    ValueError
        A network of vectors or volumes, or a sigma for a network of one noise level.

    Examples
    --------
    >>> denoiser = LPNDenoiser(lf.pretrained("fast-gray"))  # doctest: +SKIP
    >>> denoiser(torch.rand(2, 3, 31, 33), sigma=0.05).shape  # doctest: +SKIP
    torch.Size([2, 3, 31, 33])
    """

    def __init__(self, network: LPN, sigma: float | None = None):
        checked_network(network)
        if len(network.spec.axes) != 2:
            kind = "a dense one" if network.spec.is_dense else "one of volumes"
            raise ValueError(f"network must be convolutional, of images, got {kind}")
        levels = network.spec.noise_levels
        if sigma is not None and not levels:
            raise ValueError(f"sigma must be None for a network of one noise level, got {sigma:g}")
        super().__init__(device=next(network.parameters()).device)
        self.network = network
        self.sigma = levels[len(levels) // 2] if sigma is None and levels else sigma

    def forward(self, x: Tensor, sigma=None, **_) -> Tensor:
        """f(x), shape (N, C, H, W).

        Parameters
        ----------
        x : Tensor, shape (N, C, H, W)
        sigma : float or Tensor, shape (), (N,) or (N, 1, 1, 1), or None
            A network of one noise level has no use for it. Images of level 0 come back as they are.
        """
        samples, levels = self.samples(x, sigma)
        if levels is None or bool((levels > 0).all()):
            return self.network(samples, levels).view(x.shape)
        noisy = levels > 0
        denoised = samples.clone()
        if bool(noisy.any()):
            denoised[noisy] = self.network(samples[noisy], levels[noisy])
        return denoised.view(x.shape)

    def samples(self, x: Tensor, sigma=None) -> tuple[Tensor, Tensor | None]:
        """x as the network takes it, (N, c, H, W), and the noise level of every sample, (N,) or None."""
        planes = self.planes(x)
        samples = x.reshape(-1, self.network.spec.channels, *x.shape[-2:])
        if not self.network.is_noise_conditional:
            return samples, None
        sigma = self.sigma if sigma is None else sigma
        levels = self._handle_sigma(sigma, batch_size=len(x), device=x.device, dtype=x.dtype)
        return samples, levels.reshape(-1).expand(len(x)).repeat_interleave(planes)

    def planes(self, x: Tensor) -> int:
        """Samples per image: the colour planes for a network of one channel, else 1."""
        channels = self.network.spec.channels
        checked_images(x, ("C" if channels == 1 else channels, "H", "W"), next(self.network.parameters()))
        check_channels_second("x", x)
        return x.shape[1] // channels


@dataclass
class _Visited:
    """A point whose preimage is known."""

    x: Tensor  # (N, C, H, W)
    sigma: Tensor | None  # (N,)
    preimage: Tensor  # (N, C, H, W)
    value: Tensor  # (N,) float64


class LPNPrior(Prior):
    """R, the function whose prox the network is, as an explicit prior: optimizers track the true cost with it.

    R need not be convex. The cost of PGD falls in every iteration all the same if stepsize <= 1 / ||A||^2. That of HQS,
    DRS, ADMM and FISTA need not: what falls there instead is in the documentation, page "embedding".

    Parameters
    ----------
    denoiser : LPN or LPNDenoiser
    sigma : float, optional
        As for `LPNDenoiser`, for optimizers without `g_param`.
    tol : float
        Tolerance of the inversion behind `fn` and `grad` at points that are no output of `prox`.

    Attributes
    ----------
    denoiser : LPNDenoiser
    explicit_prior : bool
        True.

    Examples
    --------
    >>> prior = LPNPrior(lf.pretrained("fast-gray"), sigma=0.03)  # doctest: +SKIP
    >>> optimizer = deepinv.optim.PGD(L2(), prior, stepsize=0.9, lambda_reg=0.5)  # doctest: +SKIP
    >>> x = optimizer(y, physics)  # doctest: +SKIP
    """

    def __init__(self, denoiser: LPN | LPNDenoiser, sigma: float | None = None, tol: float = 1e-5):
        super().__init__()
        self.denoiser = denoiser if isinstance(denoiser, LPNDenoiser) else LPNDenoiser(denoiser, sigma)
        self.tol = tol
        self.explicit_prior = True
        self._last: _Visited | None = None

    def fn(self, x: Tensor, sigma_denoiser=None, *_, **__) -> Tensor:
        """R(x), shape (N,), float64; free at the last output of `prox`, else by inversion.

        Warns
        -----
        RuntimeWarning
            Points whose inversion did not converge; their value is a lower bound.
        """
        known = self._known(x, sigma_denoiser)
        return known.value if known is not None else self._by_inversion(x, sigma_denoiser).value

    def grad(self, x: Tensor, sigma_denoiser=None, *_, **__) -> Tensor:
        """grad R(x) = u - x with f(u) = x, shape (N, C, H, W); free at the last output of `prox`."""
        known = self._known(x, sigma_denoiser) or self._by_inversion(x, sigma_denoiser)
        return known.preimage - x

    def prox(self, x: Tensor, sigma_denoiser=None, *_, gamma=1.0, **__) -> Tensor:
        """prox_{gamma R}(x), shape (N, C, H, W); differentiable where gradients are required.

        Parameters
        ----------
        x : Tensor, shape (N, C, H, W)
        sigma_denoiser : as for `LPNDenoiser`
        gamma : float or Tensor, shape (), (N,) or (N, 1, 1, 1), in (0, 1]
            The optimizers' lambda_reg * stepsize.

        Raises
        ------
        ValueError
            gamma outside (0, 1].
        """
        strength = self._strength(gamma, x)
        samples, levels = self.denoiser.samples(x, sigma_denoiser)
        network = self.denoiser.network
        if torch.is_grad_enabled() and (samples.requires_grad or any(p.requires_grad for p in network.parameters())):
            return network.prox(samples, strength, levels).view(x.shape)
        out, value, preimage = network.prox_and_prior(samples, strength, levels, return_preimage=True)
        value = value.view(len(x), -1).sum(1)
        self._last = _Visited(out.view(x.shape), levels, preimage.view(x.shape), value)
        return self._last.x.clone()  # its owner may change it in place

    def _strength(self, gamma, x: Tensor) -> float | Tensor:
        """One per sample, (N,), or one for all."""
        values = torch.as_tensor(gamma, dtype=torch.float64).detach()
        if not bool(((values > 0) & (values <= 1)).all()):
            raise ValueError(
                f"gamma = lambda_reg * stepsize must be in (0, 1], got {values.flatten().tolist()}: beyond 1 the prox "
                "of a non-convex R need not be unique; lower lambda_reg or the stepsize"
            )
        if values.numel() == 1:
            return float(values)
        if values.numel() != len(x):
            raise ValueError(f"gamma must be a number or have {len(x)} entries, got shape {tuple(values.shape)}")
        return values.flatten().to(x).repeat_interleave(self.denoiser.planes(x))

    def _known(self, x: Tensor, sigma) -> _Visited | None:
        """What is kept of x, if it is the last output of `prox`; compared by value, as optimizers hand on copies."""
        last = self._last
        if last is None or last.x.shape != x.shape or last.x.dtype != x.dtype or last.x.device != x.device:
            return None
        levels = self.denoiser.samples(x, sigma)[1]
        if levels is not None and not torch.equal(levels, last.sigma):
            return None
        return last if torch.equal(last.x, x) else None

    def _by_inversion(self, x: Tensor, sigma) -> _Visited:
        samples, levels = self.denoiser.samples(x, sigma)
        found = prior_value(self.denoiser.network, samples, sigma=levels, tol=self.tol)
        if not bool(found.converged.all()):
            warnings.warn(
                f"R is known from below only at {int((~found.converged).sum())} of {len(samples)} points: "
                f"{found.inversion}; start the optimizer from an output of the prox to avoid this",
                RuntimeWarning,
                stacklevel=3,
            )
        value = found.value.view(len(x), -1).sum(1)
        return _Visited(x, levels, found.preimage.view(x.shape), value)


def half_quadratic_cost(x: Tensor, data_fidelity, prior, cur_params: dict, y: Tensor, physics) -> Tensor:
    """What HQS lowers in every iteration, shape (N,); its argument `cost_fn`. Costs one more data prox.

        min_u  h(u) + |u - x|^2 / (2 gamma)  +  lambda R(x),        gamma = stepsize, lambda = lambda_reg

    HQS is a gradient step of length gamma on the first part, whose gradient is (x - u) / gamma, and a prox of the
    second. The cost that deepinv tracks without this has h(x) there, which HQS does not minimise.

    Examples
    --------
    >>> optimizer = deepinv.optim.HQS(L2(), prior, stepsize=0.9, cost_fn=half_quadratic_cost)  # doctest: +SKIP
    """
    stepsize = cur_params["stepsize"]
    u = data_fidelity.prox(x, y, physics, gamma=stepsize)
    distance = (u - x).flatten(1).square().sum(dim=1)
    value = prior(x, cur_params["g_param"])
    return data_fidelity(u, y, physics) + distance / (2 * stepsize) + cur_params["lambda"] * value


class _Deepinv(LinearPhysics):
    """One of our operators with deepinv's methods, and its noise as deepinv's."""

    def __init__(self, physics):
        noise = _noise_of_theirs(getattr(physics, "noise", None))
        super().__init__(**({} if noise is None else {"noise_model": noise}))
        self.operator = physics

    def A(self, x: Tensor, **_) -> Tensor:
        return self.operator.A(x)

    def A_adjoint(self, y: Tensor, **_) -> Tensor:
        return self.operator.A_adjoint(y)

    def prox_l2(self, z: Tensor, y: Tensor, gamma, *arguments, **options) -> Tensor:
        own = getattr(self.operator, "prox_l2", None)
        if not callable(own) or not isinstance(z, Tensor):
            return super().prox_l2(z, y, gamma, *arguments, **options)
        return own(z, y, gamma.flatten().expand(len(z)) if isinstance(gamma, Tensor) else gamma)

    def compute_sqnorm(self, x0: Tensor, **options) -> Tensor:
        own = getattr(self.operator, "norm", None)
        return torch.as_tensor(own() ** 2).to(x0) if callable(own) else super().compute_sqnorm(x0, **options)


class _Ours(Physics):
    """An operator of deepinv with our methods. Its norm is not known, so solvers estimate it and say so."""

    norm = None

    def __init__(self, physics: LinearPhysics):
        self.operator = physics

    def A(self, x: Tensor) -> Tensor:
        return self.operator.A(x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.operator.A_adjoint(y)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        if type(self.operator).prox_l2 is LinearPhysics.prox_l2:  # iterative: ours stops every sample on its own
            return super().prox_l2(z, y, gamma)
        if not isinstance(gamma, Tensor) or gamma.dim() == 0:
            return self.operator.prox_l2(z, y, float(gamma))
        # their closed forms broadcast gamma against spectra, whose axes are others: one sample at a time
        weights = gamma.flatten().expand(len(z)).tolist()
        return torch.cat([self.operator.prox_l2(z[i : i + 1], y[i : i + 1], g) for i, g in enumerate(weights)])


def to_deepinv_physics(physics) -> LinearPhysics:
    """One of our operators, or any with `A` and `A_adjoint`, for deepinv; its noise model goes along.

    Raises
    ------
    TypeError
        No `A` or `A_adjoint`.
    """
    if isinstance(physics, _Ours):
        return physics.operator
    for method in ("A", "A_adjoint"):
        if not callable(getattr(physics, method, None)):
            raise TypeError(f"physics must have a method {method}, got {type(physics).__name__}")
    return physics if isinstance(physics, LinearPhysics) else _Deepinv(physics)


def from_deepinv_physics(physics: LinearPhysics) -> Physics:
    """A linear operator of deepinv for our solvers, with its closed-form data prox where it has one.

    Gaussian and Poisson noise go along, so that solvers know the noise level; other noise models stay behind.

    Raises
    ------
    TypeError
        Not linear.
    """
    if isinstance(physics, _Deepinv):
        return physics.operator
    if not isinstance(physics, deepinv.physics.LinearPhysics):
        raise TypeError(f"physics must be a deepinv LinearPhysics, got {type(physics).__name__}")
    noise = _noise_of_ours(physics.noise_model)
    return _Ours(physics) if noise is None else _Ours(physics).with_noise(noise)


def _noise_of_ours(theirs):
    """deepinv's noise model as ours, or None where we have no such model."""
    kind = type(theirs)
    if kind is deepinv.physics.GaussianNoise and bool((theirs.sigma > 0).all()):
        return GaussianNoise(_number(theirs.sigma))
    if kind is deepinv.physics.PoissonNoise and bool(theirs.normalize):
        return PoissonNoise(_number(theirs.gain))
    if kind is deepinv.physics.PoissonGaussianNoise and theirs.sigma.numel() == 1:
        return PoissonNoise(_number(theirs.gain), float(theirs.sigma))
    return None


def _noise_of_theirs(ours):
    """Our noise model as deepinv's, or None where there is none such."""
    if isinstance(ours, GaussianNoise):
        return deepinv.physics.GaussianNoise(ours.sigma)
    if isinstance(ours, PoissonNoise):
        if ours.sigma == 0:
            return deepinv.physics.PoissonNoise(ours.gain)
        return deepinv.physics.PoissonGaussianNoise(ours.gain, ours.sigma)
    return None


def _number(value: Tensor) -> float | Tensor:
    return float(value) if value.numel() == 1 else value.detach().clone()
