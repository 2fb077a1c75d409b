"""Tiles give the f and psi of the whole image, at any size, stride and border, and less of a halo does not."""

import pytest
import torch
from cases import FAMILIES, Case, relative

import lpn_fast as lf
from lpn_fast.algebra.spec import Spec, Stage

VOLUMES = [name for name in FAMILIES if "volume" in name]
CONVOLUTIONAL = [name for name in FAMILIES if "dense" not in name and name != "mnist" and name not in VOLUMES]


def large(name: str, shape: tuple[int, ...]) -> tuple[lf.LPN, torch.Tensor, torch.Tensor | None]:
    """A network of the family with all parameters drawn, an image, and sigma per sample."""
    case = Case(name)
    x = torch.randn(shape[0], case.model.spec.channels, *shape[1:], dtype=torch.float64)
    sigma = torch.linspace(0.1, 0.4, len(x), dtype=torch.float64) if case.model.is_noise_conditional else None
    return case.model, x, sigma


@pytest.mark.parametrize(
    "name, shape, side",
    [(name, *of) for name in CONVOLUTIONAL for of in (((2, 49, 70), 12), ((1, 97, 41), 31), ((1, 7, 90), 64))]
    + [(name, *of) for name in VOLUMES for of in (((2, 19, 5, 18), 8), ((1, 9, 30, 4), 16))],
)
def test_tiles_are_exact(name, shape, side):
    model, x, sigma = large(name, shape)
    tiles = lf.InTiles(model, side)
    psi, f = model.potential_and_prox(x, sigma)
    in_tiles, value = tiles(x, sigma), tiles.potential_and_prox(x, sigma)
    assert (in_tiles - f).abs().max() <= 1e-12 * f.abs().max()
    assert torch.equal(value[1], in_tiles) and value[0].dtype == torch.float64
    assert (value[0] - psi).abs().max() <= 1e-10 * psi.abs().max()
    assert f.grad_fn is not None and in_tiles.grad_fn is None


@pytest.mark.parametrize(
    "name, stride", [("conv", 4), ("conv-mixed", 2), ("frame", 2), ("mixture", 1), ("volume-conditional", 2)]
)
def test_a_smaller_halo_is_not_enough(name, stride):
    model, x, sigma = large(name, (1, 16, 32, 32) if name in VOLUMES else (1, 64, 64))
    tiles = lf.InTiles(model, 16)
    tiles.halo -= 2 * stride
    assert relative(tiles(x, sigma), model(x, sigma).detach()) > 1e-12


def test_halo_of_known_networks():
    assert lf.InTiles(lf.FrameLPN(1, kernel=7)).halo == 6  # two pixels under one filter
    assert lf.InTiles(lf.ConvLPN(1, hidden=2, strides=(1,), skip_kernel=5)).halo == 4
    # cores of 3 after strides 1, 2, 2, 4 widen the view of a 5 x 5 skip by 2 + 4 + 4 + 8
    assert lf.InTiles(lf.ConvLPN(1, hidden=2)).halo == 24
    assert lf.InTiles(lf.ConvLPN(1, hidden=2), side=30).side == 32  # units of four pixels
    volumes = lf.InTiles(lf.ConvLPN(1, hidden=2, ndim=3))
    assert (volumes.halo, volumes.side) == (20, 64)  # 2 + 4 + 4 + 8 around a skip of 3


def test_prior_in_tiles_and_in_a_solver():
    model, x, sigma = large("frame", (2, 33, 40))
    tiles = lf.InTiles(model, 8)
    for mine, theirs in zip(tiles.prox_and_prior(x, sigma=sigma), model.prox_and_prior(x, sigma=sigma), strict=True):
        assert relative(mine, theirs) < 1e-10
    physics = lf.physics.Blur.gaussian(1.0)
    y = physics.A(x)
    both = [lf.solvers.pgd(y, physics, prior, sigma=0.2, max_iter=3, tol=0.0) for prior in (model, tiles)]
    assert relative(both[1].x, both[0].x) < 1e-12
    assert relative(both[1].objective, both[0].objective) < 1e-10


def test_float32_stays_within_rounding():
    model = lf.pretrained("frame-gray")
    x = torch.rand(1, 1, 150, 131)
    assert (lf.InTiles(model, 40)(x, 0.1) - model(x, 0.1)).abs().max() < 1e-5


def test_bad_input():
    model = lf.ConvLPN(1, hidden=2)
    for side in (0, -4, 2.5, "8"):
        with pytest.raises(ValueError, match="side must be a positive whole number"):
            lf.InTiles(model, side)
    with pytest.raises(ValueError, match="got a dense one"):
        lf.InTiles(lf.MLPLPN(3))
    with pytest.raises(ValueError, match=r"any size, got one of \(28, 28\)"):
        lf.InTiles(lf.paper_network("mnist"))
    with pytest.raises(ValueError, match="x must be a tensor"):
        lf.InTiles(model)(torch.rand(1, 30, 30))
    with pytest.raises(ValueError, match="x must have shape"):
        lf.InTiles(model)(torch.rand(1, 3, 30, 30))
    with pytest.raises(ValueError, match="strength must be 1 in tiles, got 0.5"):
        lf.InTiles(model).prox_and_prior(torch.rand(1, 1, 30, 30), strength=0.5)
    conditional = lf.InTiles(lf.FrameLPN(1, kernel=3))
    with pytest.raises(ValueError, match=r"sigma must have shape \(\) or \(2,\), got \(3,\)"):
        conditional(torch.rand(2, 1, 30, 30), torch.full((3,), 0.1))
    with pytest.raises(ValueError, match="sigma must be given"):
        conditional(torch.rand(2, 1, 30, 30))
    # 5 units of 2 pixels, or of one: the sizes agree by chance at one image size, the places do not
    stages = (Stage(2, skip_kernel=1), Stage(2, kernel=1, stride=2, skip_kernel=5, heads=("linear",)))
    with pytest.raises(ValueError, match=r"stage 1: the strides of core and skip must agree, got \[1, 2\]"):
        lf.InTiles(lf.LPN(Spec("conv", 1, stages, 1.0)))
