"""psi and f of frames and mixtures by few passes over memory: the reference's, however images are grouped."""

import pytest
import torch
from cases import relative

import lpn_fast as lf
from lpn_fast.algebra import reference
from lpn_fast.ops import registry
from lpn_fast.ops.backends import pointwise

NETWORKS = {
    "frame": lambda: lf.FrameLPN(2, kernel=3, gates=((1, 1, 5),)),
    "two stages of gates": lambda: lf.FrameLPN(1, kernel=2, gates=((1, 1, 5), (1, 1, 4))),
    "no gates": lambda: lf.FrameLPN(1, kernel=2, gates=()),
    "mixture": lambda: lf.pretrained("fast-gray"),
}


def call(build, batch, dtype):
    model = build()
    torch.manual_seed(0)
    x = 4 * torch.randn(batch, model.spec.channels, 9, 7, dtype=dtype)
    levels = len(model.spec.noise_levels)
    features = torch.rand(batch, levels, dtype=dtype) if levels else None
    return model.spec, x, model.packed().detach().to(dtype), features


@pytest.mark.parametrize("large", [1, 1 << 16], ids=["one by one", "together"])
@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_potential_and_prox_are_the_reference(monkeypatch, build, batch, large):
    monkeypatch.setattr(pointwise, "LARGE", large)
    arguments = call(build, batch, torch.float64)
    psi, f = pointwise.value_prox(*arguments, True)
    assert psi.shape == (batch,) and f.shape == arguments[1].shape
    assert relative(psi, reference.potential(*arguments)) < 1e-12
    assert relative(f, reference.prox(*arguments)) < 1e-12
    alone = pointwise.value_prox(*arguments, False)
    assert alone[0] is None and relative(alone[1], f) < 1e-12


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_precision_stores_what_is_wide_and_loses_nothing_by_it(precision):
    """Energies in the thousands keep no digit behind the point in 16 bits, and the softmax lives on those."""
    spec, x, packed, features = call(NETWORKS["mixture"], 2, torch.float32)
    backend = registry._backends["torch"]
    f = backend.evaluate(spec, 20 * x, packed, features, False, False, precision)[1]
    truth = reference.prox(spec, 20 * x.double(), packed.double(), features.double())
    assert relative(f, truth) < 1e-5


def test_x_and_the_parameters_are_left_as_they_were():
    spec, x, packed, features = call(NETWORKS["two stages of gates"], 2, torch.float64)
    before = x.clone(), packed.clone(), features.clone()
    pointwise.value_prox(spec, x, packed, features, True)
    assert all(map(torch.equal, (x, packed, features), before))
