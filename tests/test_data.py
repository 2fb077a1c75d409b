"""Crops, augmentation, stores; images made up."""

import math

import numpy as np
import pytest
import torch

from lpn_fast.data import Augment, ImageCrops, ImageStore, synthetic_crops, synthetic_images
from lpn_fast.data.augment import rotated


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- crops


def test_every_crop_is_a_symmetric_image_of_a_window_of_an_image(surfaces):
    folder, pixels = surfaces
    crops = ImageCrops([folder], crop=9)(40, seeded())
    windows = {}
    for image in pixels:
        view = np.lib.stride_tricks.sliding_window_view(image, (9, 9)).reshape(-1, 81)
        windows |= {bytes(np.ascontiguousarray(row)): True for row in view}
    for crop in (255 * crops[:, 0]).round().byte().numpy():
        turned = [np.rot90(base, k) for base in (crop, crop.T) for k in range(4)]
        assert any(np.ascontiguousarray(t).tobytes() in windows for t in turned)


def test_rows_of_a_batch_are_the_rows_of_the_whole_batch(surfaces):
    crops = ImageCrops([surfaces[0]], crop=9, augment=Augment("mirror", 30, 1.2, 0.5, 1.5))
    whole = crops(10, seeded())
    assert torch.equal(crops(10, seeded(), rows=slice(4, 7)), whole[4:7])
    generators = seeded(), seeded()
    crops(10, generators[0]), crops(10, generators[1], rows=slice(0, 1))
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


def test_all_places_and_symmetries_occur_and_none_other(surfaces):
    ramp = (np.arange(5)[:, None] * 10 + np.arange(5)).astype(np.uint8)[None]
    for symmetries, count in (("all", 8), ("mirror", 2), ("none", 1)):
        crops = ImageCrops.of_store(ImageStore([ramp]), 5, Augment(symmetries), "ramp")
        seen = {(255 * c).round().byte().numpy().tobytes() for c in crops(200, seeded())}
        assert len(seen) == count
    corners = (255 * ImageCrops.of_store(ImageStore([ramp]), 2, Augment("none"), "r")(300, seeded())).round()
    assert sorted(set(corners[:, 0, 0, 0].int().tolist())) == [10 * r + c for r in range(4) for c in range(4)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_crops_on_the_device_are_those_of_the_cpu(surfaces):
    here, there = (ImageCrops([surfaces[0]], crop=9, augment=Augment(contrast=1.5), device=d) for d in ("cpu", "cuda"))
    assert torch.allclose(here(20, seeded()), there(20, seeded()).cpu(), atol=1e-6)


# ---- augmentation


def test_rotation_by_a_quarter_and_zoom_by_one_move_pixels_exactly():
    x = torch.rand(3, 2, 16, 16, dtype=torch.float64)
    angle = torch.tensor([0.0, math.pi / 2, math.pi], dtype=torch.float64)
    y = rotated(x, angle, torch.ones(3, dtype=torch.float64))
    assert torch.allclose(y[0], x[0])
    assert torch.allclose(y[2], torch.rot90(x[2], 2, (1, 2)))
    quarter = [torch.rot90(x[1], k, (1, 2)) for k in (1, 3)]
    assert any(torch.allclose(y[1], q) for q in quarter)


def test_rotation_keeps_shapes_in_images_that_are_not_square():
    rows, columns = torch.meshgrid(torch.arange(20.0) - 9.5, torch.arange(40.0) - 19.5, indexing="ij")
    disc = ((rows**2 + columns**2) < 36).float()[None, None]
    turned = rotated(disc, torch.tensor([0.6]), torch.ones(1))
    assert (turned - disc).abs().mean() < 0.03
    larger = rotated(disc, torch.zeros(1), torch.tensor([1.4]))
    assert larger.sum() / disc.sum() == pytest.approx(1.96, rel=0.05)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"symmetries": "some"}, "symmetries must be one of"),
        ({"degrees": 200.0}, "degrees must lie"),
        ({"zoom": 0.5}, "zoom must be at least 1, got 0.5"),
        ({"contrast": 0.9}, "contrast must be at least 1"),
        ({"probability": 2.0}, "probability must lie"),
    ],
)
def test_bad_augmentation_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Augment(**arguments)


# ---- synthetic images


@pytest.mark.parametrize("kind", ["dead-leaves", "ellipses", "phantoms"])
def test_synthetic_images_are_functions_of_their_seed(kind):
    a, b, other = (synthetic_images(kind, 2, 32, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, other)
    assert a.shape == (2, 1, 32, 32) and a.dtype == np.float32
    assert a.min() >= 0 and a.max() <= 1 and a.std() > 0.05
    crops = synthetic_crops(kind, crop=16, pool=2, side=32, channels=3)
    assert crops(3, seeded()).shape == (3, 3, 16, 16) and len(crops) == 2


def test_dead_leaves_have_the_spectrum_of_photographs():
    """Power falls like frequency^-2 in two dimensions, roughly: the slope lies between -2.9 and -1.7."""
    images = synthetic_images("dead-leaves", 6, 128)[:, 0]
    power = (np.abs(np.fft.fft2(images - images.mean((1, 2), keepdims=True))) ** 2).mean(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
    bins = np.geomspace(0.02, 0.3, 8)
    means = [power[(frequency >= a) & (frequency < b)].mean() for a, b in zip(bins, bins[1:], strict=False)]
    slope = np.polyfit(np.log(np.sqrt(bins[1:] * bins[:-1])), np.log(means), 1)[0]
    assert -2.9 < slope < -1.7


def test_bad_synthetic_arguments_are_named():
    with pytest.raises(ValueError, match="kind must be one of"):
        synthetic_images("clouds", 1, 32)
    with pytest.raises(ValueError, match="count must be at least 1"):
        synthetic_images("ellipses", 0, 32)
