"""What a measurement operator is, and two measurements of any such operator.

    y = A x + noise,     h(x) = 1/2 ||A x - y||^2,     grad h(x) = A^T (A x - y),     Lip(grad h) = ||A||^2

Every guarantee of the solvers leans on two facts about A: that `A_adjoint` is its adjoint, not
merely similar to it (`adjoint_mismatch` measures that), and that `norm` bounds ||A|| from
above. Power iteration approaches ||A|| from *below*; `operator_norm` therefore adds a margin,
and its result is an estimate, never a proof. `operator_norm_bound` turns the same iteration into a
bound that fails with a stated probability.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..per_sample import broadcast, dot, norm
from .cg import prox_l2_by_cg
from .checks import check_count
from .noise import Noisy
from .protocol import LinearOperator, NoiseModel
from .starts import reached, scaled_adjoint


class Physics:
    """A linear operator A between batches of images and batches of measurements.

    Subclasses give `A`, `A_adjoint` and `norm`; `prox_l2` has a general answer here, which
    an operator with a closed form replaces. Operators act on every sample alike and on each alone.

    Examples
    --------
    >>> import torch
    >>> class Halving(Physics):
    ...     def A(self, x):
    ...         return x / 2
    ...     def A_adjoint(self, y):
    ...         return y / 2
    ...     def norm(self):
    ...         return 0.5
    >>> Halving().prox_l2(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), gamma=4.0)
    tensor([[[[1.]]]])
    """

    reaches_all = False  # known to have no row of zeros: `seen` need not look

    def A(self, x: Tensor) -> Tensor:
        """Measurements of the images x, shape (N, C, H, W), without noise."""
        raise NotImplementedError(f"{type(self).__name__} must define A(x)")

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Images A^T y, so that <A x, y> = <x, A^T y> for every sample."""
        raise NotImplementedError(f"{type(self).__name__} must define A_adjoint(y)")

    def norm(self) -> float:
        """Upper bound on ||A||, the largest singular value."""
        raise NotImplementedError(f"{type(self).__name__} must define norm()")

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        """Data prox argmin_x 1/2 ||x - z||^2 + gamma/2 ||A x - y||^2, by conjugate gradients.

        Parameters
        ----------
        z : Tensor, shape (N, C, H, W)
            Points.
        y : Tensor, shape (N, ...)
            Measurements.
        gamma : float or Tensor, shape (N,)
            Weight of the data, positive.

        Returns
        -------
        Tensor, shape (N, C, H, W)
        """
        return prox_l2_by_cg(self, z, y, gamma)

    @property
    def has_closed_prox(self) -> bool:
        """Whether `prox_l2` is a formula; else it is an iteration, which solvers start near and end in time."""
        return type(self).prox_l2 is not Physics.prox_l2

    def measurement_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of `A(x)` for images of shape `image_shape`, (N, C, H, W)."""
        return (image_shape[0], *self.A(torch.zeros(1, *image_shape[1:])).shape[1:])

    def start(self, y: Tensor) -> Tensor:
        """A first picture, shape (N, C, H, W), from measurements y: c A^T y (starts.py), or what suits the operator."""
        return scaled_adjoint(self, y)

    start.is_scaled_adjoint = True  # type: ignore[attr-defined]

    def seen(self, y: Tensor) -> Tensor:
        """Which entries of y the operator can reach, bool, shape of y; the others say nothing about any image."""
        return torch.ones_like(y, dtype=torch.bool) if self.reaches_all else reached(self, y)

    def select(self, samples: Tensor) -> "Physics":
        """The operator of some samples of a batch.

        Parameters
        ----------
        samples : Tensor, shape (n,), int64, or shape (N,), bool
            Which ones.

        Returns
        -------
        Physics
            This object, unless the operator differs from sample to sample.
        """
        return self

    def with_noise(self, noise: NoiseModel) -> Noisy:
        """This operator together with a noise model: it can then simulate measurements.

        Parameters
        ----------
        noise : GaussianNoise or PoissonNoise

        Returns
        -------
        Noisy
        """
        return Noisy(self, noise)


def adjoint_mismatch(physics: LinearOperator, x: Tensor, y: Tensor) -> Tensor:
    """Distance of `A_adjoint` from the adjoint of `A`, measured at x and y.

        |<A x, y> - <x, A^T y>| / (||A x|| ||y||)

    Parameters
    ----------
    physics : LinearOperator
    x : Tensor, shape (N, ...)
        Images; random ones make a useful test.
    y : Tensor, shape (N, ...)
        Measurements, likewise.

    Returns
    -------
    Tensor, shape (N,), float64
        About the rounding unit of the type for a matched pair; 0 where A x or y is zero.

    Examples
    --------
    >>> import torch
    >>> from lpn_fast.physics import Blur
    >>> image = torch.randn(3, 1, 9, 9)
    >>> bool((adjoint_mismatch(Blur.gaussian(1.0), image, torch.randn_like(image)) < 1e-6).all())
    True
    """
    measured = physics.A(x)
    scale = norm(measured) * norm(y)  # (N,)
    gap = (dot(measured, y) - dot(x, physics.A_adjoint(y))).abs()
    return torch.where(scale == 0, 0.0, gap / scale)


def operator_norm(
    physics: LinearOperator,
    x: Tensor,
    *,
    max_iter: int = 100,
    tol: float = 1e-4,
    margin: float = 1.05,
    seed: int = 0,
) -> float:
    """Estimate of ||A||, enlarged by a safety margin.

    Power iteration on A^T A from a positive random image, stopped when the estimate moves by less
    than `tol` or after `max_iter` steps. It approaches ||A|| from below, hence the margin; how
    far below cannot be known, hence "estimate". Prefer an operator that knows its own bound.

    Parameters
    ----------
    physics : LinearOperator
    x : Tensor, shape (N, ...)
        Any image batch: only its shape beyond N, type and device are used.
    max_iter, tol : int, float
        Most steps, and relative change of the estimate that ends them.
    margin : float
        Factor on the result, at least 1.
    seed : int
        Seed of the start, so that the answer is reproducible.

    Returns
    -------
    float
        `margin` times the last estimate; 0 if A maps the start to zero.

    Raises
    ------
    ValueError
        margin below 1.

    Examples
    --------
    >>> import torch
    >>> from lpn_fast.physics import Denoising
    >>> round(operator_norm(Denoising(), torch.zeros(1, 1, 8, 8)), 4)
    1.05
    """
    if not margin >= 1:
        raise ValueError(f"margin must be at least 1, got {margin}")
    generator = torch.Generator().manual_seed(seed)
    # Positive: averaging operators (blurs, projectors) have their top singular vector near the constants.
    v = torch.rand(1, *x.shape[1:], generator=generator, dtype=torch.float64).to(x)  # (1, ...)
    estimate = 0.0
    for _ in range(max_iter):
        v = v / float(norm(v))
        measured = physics.A(v)
        previous, estimate = estimate, float(norm(measured))
        if estimate == 0.0 or abs(estimate - previous) <= tol * estimate:
            break
        v = physics.A_adjoint(measured)
    return margin * estimate


def operator_norm_bound(
    physics: LinearOperator,
    image_shape: Sequence[int],
    *,
    failure_probability: float = 1e-9,
    max_iter: int = 100,
    starts: int = 4,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> float:
    """Upper bound on ||A|| that holds but for a stated probability.

    With B = A^T A and a normal random image w, the part g of w along the top singular vector is a standard
    normal number, and ||B^q w|| >= ||A||^(2 q) |g| for every q. Of r independent starts the largest |g| is below
    tau with probability at most (tau sqrt(2 / pi))^r, hence but for that probability, for all q at once,

        ||A||^2 <= min over q of  (max over starts of ||B^q w|| / tau)^(1 / q)

    Near the norm after some tens of steps, whatever the spectrum: of use where `norm()` is loose, as
    for `CompressedSensing` with few rows.

    Parameters
    ----------
    physics : LinearOperator
        Acting on every sample alike.
    image_shape : (C, H, W), or any shape of one sample
    failure_probability : float in (0, 1)
        Over the random starts; the seed must not be chosen with a view to the result.
    max_iter : int
        Steps q, each one A and one A^T on `starts` samples.
    starts : int
        Independent random images r.
    seed : int
    device : torch.device or str
    dtype : torch.dtype
        Of the images, for operators that take one type alone; float32 rounds the bound by 1e-6 of itself.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        A probability outside (0, 1), counts below 1.

    Examples
    --------
    >>> from lpn_fast.physics import Denoising
    >>> 1 <= operator_norm_bound(Denoising(), (1, 8, 8)) < 1.1
    True
    """
    if not 0 < failure_probability < 1:
        raise ValueError(f"failure_probability must lie in (0, 1), got {failure_probability}")
    check_count("max_iter", max_iter)
    check_count("starts", starts)
    tau = failure_probability ** (1 / starts) * math.sqrt(math.pi / 2)
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(starts, *image_shape, generator=generator, dtype=torch.float64).to(device, dtype)  # (r, ...)
    log_length = torch.zeros(starts, dtype=torch.float64, device=v.device)  # log ||B^q w||, (r,)
    bound = math.inf
    with torch.no_grad():
        for q in range(1, max_iter + 1):
            v = physics.A_adjoint(physics.A(v))
            length = norm(v)  # (r,)
            if not bool((length > 0).all()):
                return 0.0  # a normal random image is mapped to zero by the zero operator only
            v = v / broadcast(length, v)
            log_length = log_length + length.log()
            bound = min(bound, math.exp((float(log_length.max()) - math.log(tau)) / (2 * q)))
    return bound
