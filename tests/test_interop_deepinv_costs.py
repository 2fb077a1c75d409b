"""What deepinv's optimizers lower in every iteration with LPNPrior, and when; R is not convex in any of these tests.

h(x) = 1/2 |A x - y|^2 with m |x|^2 <= |A x|^2 <= L |x|^2, F = h + lambda R, step gamma, gamma lambda <= 1. Since f is
a prox, R + 1/2 |.|^2 is convex, and each line follows from the optimality of the two half steps u (data) and x (prior):

    PGD            F(x_k)                                                   gamma L <= 1
    HQS            min_u h(u) + |u - x_k|^2 / (2 gamma) + lambda R(x_k)     any gamma
    DRS            h(u_k) + <grad h(u_k), x_k - u_k> + |x_k - u_k|^2 / (2 gamma) + lambda R(x_k)
                                                                            gamma L < 1 (Themelis, Patrinos 2020)
    ADMM, g_first  the same of u_k and x_(k+1)                              gamma L < 1
    ADMM           |u_k - x_k|                                              2 gamma lambda m <= m - lambda
    FISTA          F(x_k) + (1 / gamma - lambda) / 2 |x_k - x_(k-1)|^2      gamma L <= 1, lambda <= m

The last two ask for a convex F. ADMM in its default order ends with the prior, whose gradient has no useful Lipschitz
constant, and FISTA's momentum makes F itself ripple even there.
"""

import pytest
import skimage.data
import torch
from deepinv_cases import SIGMA, deepinv, images, network, problem

import lpn_fast as lf
from lpn_fast.interop.deepinv import LPNPrior, half_quadratic_cost

STRENGTHS = (1.0, 0.5, 0.2, 0.05)  # gamma lambda
ITERATIONS = 15
# The prox is solved to 1e-6 of its argument; where x moves, that is the error of a descent inequality, too.
SLACK = 1e-6


@pytest.fixture(scope="module")
def model():
    return network(gain=2.0, sigma_conditional=True).double()


@pytest.fixture(scope="module")
def shipped():
    return lf.pretrained("frame-gray").double().requires_grad_(False)


def photograph():
    """A piece of a photograph with noise, (1, 1, 12, 13), float64."""
    piece = torch.from_numpy(skimage.data.camera()[100:112, 200:213] / 255)[None, None]
    return piece + SIGMA * torch.randn(piece.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_no_prior_of_these_tests_is_convex(model, shipped):
    """R is convex where f has a Lipschitz constant of at most 1; some eigenvalue of the Hessian of psi is larger."""
    for own, x in ((model, images(1).double()), (shipped, photograph())):
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
        for _ in range(30):
            direction = own.hvp(x, direction / direction.norm(), sigma=SIGMA)
        assert float(direction.norm()) > 1.1


class RecordedPrior(LPNPrior):
    """Keeps what its prox returned, and R there."""

    def __init__(self, model):
        super().__init__(model, sigma=SIGMA)
        self.points, self.values = [], []

    def prox(self, x, sigma_denoiser=None, *arguments, **options):
        out = super().prox(x, sigma_denoiser, *arguments, **options)
        self.points.append(out)
        self.values.append(self(out, sigma_denoiser))
        return out


class RecordedL2(deepinv.optim.L2):
    """Keeps what its prox returned."""

    def __init__(self):
        super().__init__()
        self.points = []

    def prox(self, x, *arguments, **options):
        self.points.append(super().prox(x, *arguments, **options))
        return self.points[-1]


class Run:
    """One run of an optimizer from an output of the prox; everything in float64."""

    def __init__(self, name, model, strength, stepsize, blurred=1.0, **options):
        self.physics, y = problem(blurred=blurred)
        self.physics, self.y = self.physics.double(), y.double()
        self.stepsize, self.weight = stepsize, strength / stepsize
        self.prior, self.fidelity = RecordedPrior(model), RecordedL2()
        optimizer = getattr(deepinv.optim, name)(
            self.fidelity, self.prior, stepsize=stepsize, lambda_reg=self.weight, max_iter=ITERATIONS, **options
        )
        start = LPNPrior(model, sigma=SIGMA).prox(self.physics.A_adjoint(self.y))
        other = torch.zeros_like(start) if name == "ADMM" else start.clone()  # its second variable is dual
        x, metrics = optimizer(self.y, self.physics, init=(start, other), compute_metrics=True)
        self.start, self.costs = start, torch.tensor(metrics["cost"]).T  # (iterations, N)
        assert bool(x.isfinite().all())

    def h(self, x):
        return self.fidelity.fn(x, self.y, self.physics)  # (N,)

    def envelope(self, u, x, value):
        """The objective of Douglas and Rachford, (N,), of the halves u (data) and x (prior, with R = value)."""
        slope = self.fidelity.grad(u, self.y, self.physics)
        return self.h(u) + inner(slope, x - u) + inner(x - u, x - u) / (2 * self.stepsize) + self.weight * value


def inner(a, b):
    return (a * b).flatten(1).sum(dim=1)  # (N,)


def bounds(blurred):
    """(m, L) of the blur: the least and the largest |A x|^2 of unit x."""
    physics, y = problem(blurred=blurred)
    unit = torch.eye(y[0].numel(), dtype=torch.float64).view(-1, *y.shape[1:])
    gains = torch.linalg.svdvals(physics.double().A(unit).flatten(1)) ** 2
    return float(gains[-1]), float(gains[0])


def assert_falls(curve, slack=SLACK):
    """No entry (iterations, N) lies above the one before it, and the whole falls by more than that could hide."""
    curve = torch.as_tensor(curve, dtype=torch.float64)
    size = curve.abs().amax(dim=0).clamp(min=1.0)
    assert len(curve) >= ITERATIONS - 1 and bool((curve.diff(dim=0) <= slack * size).all()), curve
    assert bool((curve[0] - curve[-1] > 10 * slack * size).all()), curve


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("which", ["model", "shipped"])
def test_pgd_lowers_the_cost_in_every_iteration(request, which, strength):
    assert_falls(Run("PGD", request.getfixturevalue(which), strength, stepsize=1.0).costs)


@pytest.mark.parametrize(("strength", "stepsize"), list(zip(STRENGTHS, (0.9, 3.0, 0.9, 3.0), strict=True)))
def test_hqs_lowers_the_half_quadratic_cost_in_every_iteration(model, strength, stepsize):
    assert_falls(Run("HQS", model, strength, stepsize, cost_fn=half_quadratic_cost).costs)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_drs_lowers_its_envelope_in_every_iteration(model, strength):
    run = Run("DRS", model, strength, stepsize=0.99)
    halves = zip(run.fidelity.points, run.prior.points, run.prior.values, strict=True)
    envelope = torch.stack([run.envelope(*half) for half in halves])
    assert_falls(envelope)
    assert bool((run.costs <= envelope + SLACK).all())  # so F stays below the first value of the envelope


@pytest.mark.parametrize("strength", STRENGTHS)
def test_admm_with_the_prior_first_lowers_the_same_envelope(model, strength):
    # the cost is asked for at u, which is no output of the prox: it would take an inversion each time
    run = Run("ADMM", model, strength, stepsize=0.99, g_first=True, cost_fn=lambda u, *_: u.new_zeros(len(u)))
    halves = zip(run.fidelity.points, run.prior.points[1:], run.prior.values[1:], strict=False)
    assert_falls(torch.stack([run.envelope(*half) for half in halves]))


@pytest.mark.parametrize("strength", [0.4, 0.2, 0.1, 0.05])
def test_admm_brings_its_halves_together_in_every_iteration_where_the_cost_is_convex(model, strength):
    modulus, _ = bounds(blurred=0.1)
    stepsize = 1.01 * strength / (modulus * (1 - 2 * strength))
    run = Run("ADMM", model, strength, stepsize, blurred=0.1)
    assert 2 * strength * modulus <= modulus - run.weight
    pairs = zip(run.fidelity.points, run.prior.points, strict=True)
    assert_falls(torch.stack([inner(u - x, u - x).sqrt() for u, x in pairs]))


@pytest.mark.parametrize("strength", [0.8, 0.4, 0.2, 0.05])
def test_fista_lowers_cost_and_motion_together_where_the_cost_is_convex(model, strength):
    modulus, largest = bounds(blurred=0.1)
    run = Run("FISTA", model, strength, stepsize=1 / largest, blurred=0.1)
    assert run.weight <= modulus
    points = [run.start, *run.prior.points]
    motion = torch.stack([inner(b - a, b - a) for a, b in zip(points, points[1:], strict=False)])
    assert_falls(run.costs + (1 / run.stepsize - run.weight) / 2 * motion)


def test_curves_that_rise_or_do_not_move_are_noticed():
    falling = torch.linspace(1, 0, ITERATIONS)[:, None].repeat(1, 2).double()
    assert_falls(falling)
    rising = falling.clone()
    rising[7, 1] += 0.08
    for curve in (rising, falling * 0, falling[: ITERATIONS // 2]):
        with pytest.raises(AssertionError):
            assert_falls(curve)
