"""Parallel-beam CT as an operator: closed-form line integrals, scikit-image, FBP, the norm, bad input.

How the compiled and the torch projector agree, and on which instruction sets, is tests/test_ct_projector.py.
"""

import math

import numpy as np
import pytest
import torch
from cases import relative
from physics_cases import DEVICES, DOT_TOL, dense, largest_singular_value, rand, randn
from skimage.transform import radon

from lpn_fast.physics import ParallelBeamCT, adjoint_mismatch


def grid(ct):
    """Coordinates (u, v) of the pixel centres, as the geometry states them."""
    g = ct.geometry
    u = (torch.arange(g.width) - (g.width - 1) / 2) * g.pixel
    v = ((g.height - 1) / 2 - torch.arange(g.height)) * g.pixel
    return u.double()[None, :], v.double()[:, None]


def detector(ct):
    """(angles, 1) and (bins,)."""
    g = ct.geometry
    t = (torch.arange(g.bins) - (g.bins - 1) / 2) * g.spacing
    return torch.tensor(g.angles, dtype=torch.float64)[:, None], t.double()


# centre u, v; standard deviations along u and v; height. Off-centre and unequal: nothing may be mirrored unseen.
BUMPS = [(20.0, 10.0, 10.0, 6.0, 1.0), (-25.0, -17.0, 7.0, 9.0, 0.5)]


def bumps(ct):
    u, v = grid(ct)
    return sum(h * torch.exp(-0.5 * (((u - a) / s) ** 2 + ((v - b) / t) ** 2)) for a, b, s, t, h in BUMPS)


def bump_integrals(ct):
    """Line integrals of Gaussian bumps: again Gaussian, with the variance projected onto the detector."""
    theta, t = detector(ct)
    total = 0.0
    for a, b, s, r, height in BUMPS:
        variance = (s * theta.cos()) ** 2 + (r * theta.sin()) ** 2
        centre = a * theta.cos() + b * theta.sin()
        mass = height * 2 * math.pi * s * r
        total = total + mass / (2 * math.pi * variance).sqrt() * torch.exp(-0.5 * (t - centre) ** 2 / variance)
    return total


ELLIPSE = (8.0, -5.0, 30.0, 18.0, 0.6)  # centre u, v; half axes; tilt


def ellipse(ct, supersampling=8):
    """Area fraction of every pixel inside the ellipse."""
    u, v = grid(ct)
    a, b, p, q, tilt = ELLIPSE
    offsets = ((torch.arange(supersampling) + 0.5) / supersampling - 0.5).double() * ct.geometry.pixel
    total = 0.0
    for du in offsets:
        for dv in offsets:
            x, y = u + du - a, v + dv - b
            along, across = x * math.cos(tilt) + y * math.sin(tilt), y * math.cos(tilt) - x * math.sin(tilt)
            total = total + ((along / p) ** 2 + (across / q) ** 2 <= 1)
    return total / supersampling**2


def ellipse_integrals(ct):
    """Chord lengths 2 p q sqrt(w^2 - t^2) / w^2 with w the half width of the shadow."""
    theta, t = detector(ct)
    a, b, p, q, tilt = ELLIPSE
    width2 = (p * (theta - tilt).cos()) ** 2 + (q * (theta - tilt).sin()) ** 2
    t = t - (a * theta.cos() + b * theta.sin())
    return 2 * p * q * (width2 - t**2).clamp_min(0).sqrt() / width2


SCANS = {
    "square": lambda: ParallelBeamCT(128, 60),
    "odd": lambda: ParallelBeamCT((121, 135), 45, 150),
    "fine pixels": lambda: ParallelBeamCT((256, 241), 50, 140, pixel=0.5),
    "any angles": lambda: ParallelBeamCT(128, [-7.0, -0.2, 0.0, math.pi / 4, math.pi / 2, 2.0, math.pi, 4.0, 9.0]),
    "coarse bins": lambda: ParallelBeamCT(128, 60, 60),
}


@pytest.mark.parametrize("scan", SCANS)
def test_sinogram_is_that_of_the_closed_form_for_a_smooth_object(scan):
    ct = SCANS[scan]()
    assert relative(ct.A(bumps(ct)[None, None])[0, 0], bump_integrals(ct)) < 2e-3


@pytest.mark.parametrize("angles", [60, [-7.0, -0.2, 0.0, math.pi / 4, math.pi / 2, 2.0, math.pi, 4.0, 9.0]], ids=str)
def test_sinogram_tends_to_the_closed_form_for_an_ellipse(angles):
    """An edge blurred over one pixel makes an error of first order in the pixel, here 1.2 % of a pixel of 1."""
    errors = []
    for refinement in (1, 2, 4):
        ct = ParallelBeamCT((128 * refinement, 120 * refinement), angles, 128, extent=90.0, pixel=1 / refinement)
        errors.append(relative(ct.A(ellipse(ct)[None, None])[0, 0], ellipse_integrals(ct)))
    assert errors[0] < 0.015 and errors[1] < 0.6 * errors[0] and errors[2] < 0.6 * errors[1]


def test_error_falls_with_the_square_of_the_pixel():
    errors = []
    for refinement in (1, 2, 4):
        ct = ParallelBeamCT(64 * refinement, 20, 64, extent=45.0, pixel=2 / refinement)
        errors.append(relative(ct.A(bumps(ct)[None, None])[0, 0], bump_integrals(ct)))
    assert errors[0] > 3.4 * errors[1] > 3.4**2 * errors[2]


def test_published_scan_is_the_published_geometry():
    ct = ParallelBeamCT.published()
    g = ct.geometry
    assert (g.height, g.width, g.pixel, g.bins, len(g.angles)) == (512, 512, 0.5, 400, 200)
    assert g.angles[0] == pytest.approx(math.pi / 400) and g.angles[-1] == pytest.approx(math.pi * 399 / 400)
    assert g.spacing * g.bins / 2 == pytest.approx(181.02, abs=0.005)
    y = ct.A(bumps(ct).float()[None, None])[0, 0].double()
    assert relative(y, bump_integrals(ct)) < 3e-4


@pytest.mark.parametrize("angles", [np.arange(0, 180, 7.5), np.array([3.0, 50.0, 200.0, 333.0])], ids=["half", "some"])
def test_sinogram_is_that_of_scikit_image(angles):
    """scikit-image rotates with linear interpolation about pixel n // 2, the centre for odd n."""
    ct = ParallelBeamCT(129, np.deg2rad(angles), 129, extent=64.5)
    image = bumps(ct)
    u, v = grid(ct)
    image[u**2 + v**2 > 60**2] = 0
    theirs = torch.from_numpy(radon(image.numpy(), theta=angles, circle=True).T.copy())
    assert relative(ct.A(image[None, None])[0, 0], theirs) < 1e-3


# ---------------------------------------------------------------- adjoint


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DOT_TOL, ids=str)
@pytest.mark.parametrize("scan", SCANS)
def test_adjoint_is_matched_at_real_sizes(scan, dtype, device):
    ct = SCANS[scan]()
    x = randn(3, 1, ct.geometry.height, ct.geometry.width, dtype=dtype, device=device)
    y = randn(*ct.measurement_shape(x.shape), seed=2, dtype=dtype, device=device)
    assert (adjoint_mismatch(ct, x, y) <= DOT_TOL[dtype]).all()


def test_forward_mode_derivatives_are_the_operator_itself():
    ct = ParallelBeamCT((7, 9), 5)
    x, v = randn(1, 1, 7, 9), randn(1, 1, 7, 9, seed=2)
    _, tangent = torch.func.jvp(ct.A, (x,), (v,))
    assert torch.equal(tangent, ct.A(v))
    assert torch.equal(torch.func.vmap(ct.A)(torch.stack([x, v])), torch.stack([ct.A(x), ct.A(v)]))
    assert torch.autograd.gradcheck(ct.A, x.requires_grad_(), check_forward_ad=True)


# ---------------------------------------------------------------- filtered back-projection


@pytest.mark.parametrize("window", ["ramp", "shepp-logan", "cosine", "hamming", "hann"])
def test_fbp_inverts_the_scan_of_a_smooth_object(window):
    ct = ParallelBeamCT((121, 135), 180, pixel=0.9)
    image = bumps(ct)
    assert relative(ct.fbp(ct.A(image[None, None]), window)[0, 0], image) < 0.02


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_fbp_does_not_depend_on_the_unit_of_length(scale):
    unit = ParallelBeamCT(64, 40)
    scaled = ParallelBeamCT(64, 40, pixel=scale)
    x = rand(1, 1, 64, 64)
    assert torch.allclose(scaled.A(x), scale * unit.A(x), rtol=1e-9)
    assert torch.allclose(scaled.fbp(scaled.A(x)), unit.fbp(unit.A(x)), atol=1e-9)


def test_published_fbp_has_the_right_level_inside_and_outside_a_disc():
    ct = ParallelBeamCT.published()
    u, v = grid(ct)
    radius2 = u**2 + v**2
    disc = (radius2 < 80**2).float()[None, None]
    image = ct.fbp(ct.A(disc))[0, 0]
    assert image[radius2 < 75**2].mean().item() == pytest.approx(1, abs=2e-3)
    assert abs(image[radius2 > 85**2].mean().item()) < 2e-3


def test_fbp_weighs_uneven_angles_by_their_share():
    """A half turn scanned three times as densely in its first third; opposite views count as one direction."""
    dense_part, rest = np.arange(0.5, 60, 0.5), np.arange(60.75, 180, 1.5)
    ct = ParallelBeamCT(96, np.deg2rad(np.concatenate([dense_part, rest + 180])))
    assert ct.geometry.angle_shares().sum().item() == pytest.approx(math.pi)
    image = bumps(ct)
    assert relative(ct.fbp(ct.A(image[None, None]))[0, 0], image) < 0.03
    full_turn = ParallelBeamCT(96, np.linspace(0, 2 * math.pi, 241)[:-1])
    assert torch.allclose(full_turn.geometry.angle_shares(), torch.full((240,), math.pi / 240).double())


def test_a_lower_cutoff_smooths_noise():
    ct = ParallelBeamCT(64, 60)
    noise = randn(1, 1, 60, ct.geometry.bins)
    spread = [ct.fbp(noise, cutoff=c).std().item() for c in (1.0, 0.6, 0.3)]
    assert spread[0] > 1.5 * spread[1] > 2 * spread[2]


def test_fbp_can_be_differentiated():
    ct = ParallelBeamCT(6, 5)
    assert torch.autograd.gradcheck(ct.fbp, randn(1, 1, 5, ct.geometry.bins).requires_grad_(), fast_mode=True)


# ---------------------------------------------------------------- norm


@pytest.mark.parametrize("scan", [((7, 9), 12, None), ((9, 8), 3, 5), (8, [0.3], 8)], ids=str)
def test_norm_is_a_bound_within_a_percent(scan):
    ct = ParallelBeamCT(*scan)
    g = ct.geometry
    largest = largest_singular_value(ct, (1, g.height, g.width))
    assert largest <= ct.norm() <= 1.011 * largest


def test_norm_is_a_bound_where_some_pixels_are_not_seen():
    ct = ParallelBeamCT(12, 4, 3, extent=2.0)
    assert not dense(ct, (1, 12, 12)).sum(0).all()  # columns of zeros
    largest = largest_singular_value(ct, (1, 12, 12))
    assert largest <= ct.norm() <= 1.1 * largest


def test_norm_of_a_scan_that_misses_the_image_is_zero():
    """Two bins far outside: no ray meets a pixel."""
    assert ParallelBeamCT(2, 3, 2, extent=50.0).norm() == 0


# ---------------------------------------------------------------- bad input


def test_arguments_out_of_contract_are_named():
    for arguments, options, error, message in (
        ((0, 5), {}, ValueError, "size must be at least 1, got 0"),
        ((1.5, 5), {}, TypeError, "size must be an integer, got 1.5"),
        ((8, 0), {}, ValueError, "angles must be at least 1, got 0"),
        ((8, [0.0, math.nan]), {}, ValueError, "angles must be finite"),
        (
            (8, torch.zeros(2, 2)),
            {},
            ValueError,
            r"angles must be a number or a sequence of radians, got shape \(2, 2\)",
        ),
        ((8, 5, 0), {}, ValueError, "bins must be at least 1, got 0"),
        ((8, 5, 2.0), {}, TypeError, "bins must be an integer, got 2.0"),
        ((8, 5), {"extent": -1.0}, ValueError, "extent must be positive, got -1.0"),
        ((8, 5), {"pixel": 0.0}, ValueError, "pixel must be positive, got 0.0"),
        ((8, 5), {"backend": "gpu"}, ValueError, "backend must be one of auto, cpu, torch, got 'gpu'"),
    ):
        with pytest.raises(error, match=message):
            ParallelBeamCT(*arguments, **options)
    ct = ParallelBeamCT(8, 5, 12)
    y = torch.zeros(1, 1, 5, 12)
    with pytest.raises(ValueError, match=r"x must have shape \(N, C, 8, 8\), got \(1, 1, 8, 9\)"):
        ct.A(torch.zeros(1, 1, 8, 9))
    with pytest.raises(ValueError, match=r"y must have shape \(N, C, 5, 12\), got \(1, 1, 12, 5\)"):
        ct.A_adjoint(y.mT)
    with pytest.raises(ValueError, match="window must be one of ramp, shepp-logan, cosine, hamming, hann, got 'none'"):
        ct.fbp(y, "none")
    with pytest.raises(ValueError, match=r"cutoff must lie in \(0, 1\], got 0"):
        ct.fbp(y, cutoff=0)
    with pytest.raises(ValueError, match="y must be finite, got NaN"):
        ct.fbp(y * torch.nan)
