"""The known answer: proximal matching on a Laplacian finds soft thresholding, l1 and l2 training do not."""

import pytest
import torch

import lpn_fast as lf
from lpn_fast.training.laplacian import soft_threshold, sup_error, train_laplacian

pytestmark = pytest.mark.usefixtures("one_thread")


def test_soft_threshold_is_the_prox_of_the_absolute_value():
    y = torch.linspace(-3, 3, 61, dtype=torch.float64)
    x = torch.linspace(-4, 4, 80_001, dtype=torch.float64)
    objective = 0.5 * (x[None] - y[:, None]) ** 2 + x.abs()[None]
    assert torch.allclose(soft_threshold(y), x[objective.argmin(1)], atol=1e-4)


@pytest.mark.slow
def test_proximal_matching_recovers_the_prox_of_the_prior():
    """l1 and l2 are trained shorter than in the experiment (python -m bench.experiments laplacian)."""
    steps = {"matching": 2500, "l1": 300, "l2": 300}
    error = {loss: sup_error(train_laplacian(loss, count, progress=False)) for loss, count in steps.items()}
    assert error["matching"] <= 0.05
    assert error["l1"] >= 2 * error["matching"] and error["l2"] >= 2 * error["matching"]
    assert isinstance(train_laplacian("l2", steps=1, progress=False), lf.LPN)


def test_proxes_of_every_strength_of_a_trained_network_are_those_of_brute_force():
    """argmin over x of 1/2 (x - z)^2 + t R(x), x and R(x) read off a dense grid of u: x = f(u)."""
    model = train_laplacian("matching", 400, progress=False).double()
    z = torch.linspace(-3, 3, 25, dtype=torch.float64)[:, None]
    u = torch.linspace(-12, 12, 400_001, dtype=torch.float64)[:, None]
    x, prior = model.prox_and_prior(u)
    for t in (1.0, 0.7, 0.3, 0.1):
        brute = torch.stack([x[(0.5 * (x[:, 0] - p) ** 2 + t * prior).argmin()] for p in z])
        assert (model.prox(z, strength=t) - brute).abs().max() <= 1e-4, f"at strength {t}"
