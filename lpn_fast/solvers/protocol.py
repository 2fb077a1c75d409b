"""What solvers require of a learned prior, whoever wrote it."""

from typing import Protocol

from torch import Tensor


class ProxModel(Protocol):
    """A prior R with its proximal operator.

        x = prox_{tR}(z) = argmin_x 1/2 ||x - z||^2 + t R(x)

    Every network of this package is one. What else a model has, solvers look up by name: `card` and `spec` for the
    noise levels it was trained on, `is_noise_conditional`, and `stores_activations`.
    """

    def prox_and_prior(
        self,
        z: Tensor,  # (N, ...)
        *,
        strength: float | Tensor,  # (N,) t
        sigma: float | Tensor | None,  # (N,)
    ) -> tuple[Tensor, ...]:
        """(x, R(x)): shape of z, and (N,) float64."""
        ...


class StronglyConvexModel(ProxModel, Protocol):
    """A `ProxModel` whose potential psi is alpha-strongly convex, which the theorem of ADMM requires for alpha > 0."""

    @property
    def alpha(self) -> float:
        """Modulus of strong convexity, 0 where there is none."""
        ...


class SmoothModel(StronglyConvexModel, Protocol):
    """A `ProxModel` that gives R and its gradient in one pass."""

    def prior_and_grad(
        self,
        x: Tensor,  # (N, ...)
        sigma: float | Tensor | None = None,  # (N,)
    ) -> tuple[Tensor, Tensor]:
        """(R(x), grad R(x)): (N,) float64, and shape of x."""
        ...


class WarmStartedModel(ProxModel, Protocol):
    """A `ProxModel` that iterates for t < 1 and can be told where to begin."""

    def prox_and_prior(
        self,
        z: Tensor,  # (N, ...)
        *,
        strength: float | Tensor,  # (N,) t
        sigma: float | Tensor | None,  # (N,)
        start: Tensor | None = None,  # (N, ...)
        return_preimage: bool = False,
    ) -> tuple[Tensor, ...]:
        """(x, R(x)), or (x, R(x), u) with `return_preimage`: f(u) = x, the `start` of the next call."""
        ...
