"""Intensity units: f(c x) / c as an ordinary network, its prior R(c x) / c^2."""

import math

import pytest
import torch

import lpn_fast as lf
from lpn_fast.algebra.spec import Spec, Stage

pytestmark = pytest.mark.usefixtures("seed_zero")


def make(kind):
    if kind == "dense":
        model = lf.MLPLPN(3, hidden=9, layers=2, alpha=0.1)
    elif kind == "squared":
        model = lf.ConvLPN(2, hidden=5, strides=(1, 2), alpha=0.1, beta=20.0)
    elif kind == "in its units":
        model = lf.FrameLPN(2, kernel=3, gates=((1, 1, 5),))
    elif kind == "noise":
        model = lf.ConvLPN(2, hidden=5, strides=(1, 2), alpha=0.1, beta=20.0, sigma_conditional=(0.01, 0.03, 0.2))
    else:
        stages = (Stage(4, heads=("linear", "squared")), Stage(5, kernel=1, heads=("linear",)))
        model = lf.LPN(Spec("dense", 3, stages, 10.0, 0.2, linear=True, constant=True, quadratic=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2] in ("bias", "linear", "constant", "noise"):
                parameter.normal_(std=0.3)
    return model.double().requires_grad_(False)


EVERY_KIND = pytest.mark.parametrize("kind", ["dense", "squared", "noise", "in its units", "everything"])


def points(model, count=4):
    shape = (count, 3) if model.spec.is_dense else (count, 2, 9, 11)
    return torch.randn(shape, dtype=torch.float64)


@EVERY_KIND
@pytest.mark.parametrize("c", [1 / 255, 0.5, 3.0])
def test_potential_and_prox_are_those_of_the_scaled_argument(kind, c):
    model = make(kind)
    scaled, x = lf.rescaled(model, c), points(model) / c
    old, new = ((0.05,), (0.05 / c,)) if model.is_noise_conditional else ((), ())
    psi, f = model.potential_and_prox(c * x, *old)
    psi_c, f_c = scaled.potential_and_prox(x, *new)
    assert torch.allclose(f_c, f / c, rtol=1e-10)
    assert torch.allclose(psi_c, psi / c**2, rtol=1e-10)


def test_the_prior_is_that_of_the_scaled_argument():
    model, c = make("dense"), 0.25
    x = points(model)
    ours = lf.prior(lf.rescaled(model, c), x, tol=1e-10).value
    assert torch.allclose(ours, lf.prior(model, c * x, tol=1e-10).value / c**2, rtol=1e-9)


def test_the_original_and_its_card_are_left_alone():
    model = make("dense")
    model.card = {"sigma": 0.1, "value_range": [0.0, 1.0], "data": "digits"}
    before = model.packed().clone()
    scaled = lf.rescaled(model, 1 / 255)
    assert torch.equal(model.packed(), before) and model.card["sigma"] == 0.1
    assert scaled.training and not lf.rescaled(model.eval(), 1 / 255).training
    assert scaled.card["sigma"] == pytest.approx(25.5)
    assert scaled.card["value_range"] == pytest.approx([0.0, 255.0]) and scaled.card["data"] == "digits"


@pytest.mark.parametrize("c", [0, -1.0, math.nan, math.inf, "2"])
def test_a_scale_that_is_no_positive_number_is_refused(c):
    with pytest.raises(ValueError, match="scale"):
        lf.rescaled(make("dense"), c)
