"""Loaders against real and made-up samples, augmentation, stores, synthetic images, known densities."""

import gzip
import math
import os
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lpn_fast.data import (
    WINDOWS,
    Augment,
    GaussianMixture,
    ImageCrops,
    ImageStore,
    Laplace,
    Window,
    find_items,
    open_stack,
    read_dicom,
    read_gray_or_colour,
    read_idx,
    series_in_order,
    synthetic_crops,
    synthetic_images,
    validation_batch,
)
from lpn_fast.data.augment import rotated

SHARED = os.environ.get("LPN_FAST_DATA")
shared = pytest.mark.skipif(not SHARED, reason="LPN_FAST_DATA names no folder with the real data")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def surfaces(tmp_path):
    """A folder with three gray PNGs of different sizes; their pixels."""
    folder, rng, pixels = tmp_path / "surfaces", np.random.default_rng(0), []
    folder.mkdir()
    for index, size in enumerate([(40, 50), (33, 47), (64, 32)]):
        pixels.append(rng.integers(0, 256, size, dtype=np.uint8))
        Image.fromarray(pixels[-1]).save(folder / f"{index}.png")
    return folder, pixels


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
        crops = ImageCrops.of_store(ImageStore.of_arrays([ramp]), 5, Augment(symmetries), "ramp")
        seen = {(255 * c).round().byte().numpy().tobytes() for c in crops(200, seeded())}
        assert len(seen) == count
    corners = (255 * ImageCrops.of_store(ImageStore.of_arrays([ramp]), 2, Augment("none"), "r")(300, seeded())).round()
    assert sorted(set(corners[:, 0, 0, 0].int().tolist())) == [10 * r + c for r in range(4) for c in range(4)]


def test_cached_pixels_are_the_pixels_and_are_made_once(surfaces, tmp_path, monkeypatch):
    folder, _ = surfaces
    plain = ImageCrops([folder], crop=9)(20, seeded())
    assert torch.equal(ImageCrops([folder], crop=9, cache=tmp_path / "cache")(20, seeded()), plain)
    monkeypatch.setattr("lpn_fast.data.readers._picture", lambda *_: pytest.fail("decoded again"))
    again = ImageCrops([folder], crop=9, cache=tmp_path / "cache")
    assert torch.equal(again(20, seeded()), plain)
    again.store.buffer.zero_()  # copy on write: the file is not touched
    assert torch.equal(ImageCrops([folder], crop=9, cache=tmp_path / "cache")(20, seeded()), plain)
    (pixels,) = (tmp_path / "cache").glob("*.pixels")
    pixels.write_bytes(b"short")
    with pytest.raises(ValueError, match="remove it to make it anew"):
        ImageCrops([folder], crop=9, cache=tmp_path / "cache")


def test_changed_files_are_decoded_anew(surfaces, tmp_path):
    folder, _ = surfaces
    ImageCrops([folder], crop=9, cache=tmp_path / "cache")
    Image.fromarray(np.zeros((70, 71), np.uint8)).save(folder / "0.png")
    crops = ImageCrops([folder], crop=9, cache=tmp_path / "cache")
    assert crops.store.sizes[0].tolist() == [70, 71] and (crops.store.image(0) == 0).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_crops_on_the_device_are_those_of_the_cpu(surfaces):
    here, there = (ImageCrops([surfaces[0]], crop=9, contrast=1.5, device=d) for d in ("cpu", "cuda"))
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


# ---- formats


def test_archives_are_read_without_unpacking(surfaces, tmp_path):
    folder, _ = surfaces
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"train/{path.name}")
        archive.writestr("notes.txt", "nothing to see")
    zipped = ImageCrops([tmp_path / "all.zip"], crop=9)
    assert zipped.names[0].endswith("all.zip:train/0.png") and len(zipped) == 3
    assert torch.equal(zipped(5, seeded()), ImageCrops([folder], crop=9)(5, seeded()))
    assert len(find_items([tmp_path / "all.zip"], exclude=["1"])) == 2
    content = bytearray((tmp_path / "all.zip").read_bytes())
    content[200:260] = bytes(60)  # inside the first member
    (tmp_path / "all.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"all.zip:train/0.png is not re?a?"):
        ImageCrops([tmp_path / "all.zip"], crop=9)
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="bad.zip is not a readable zip archive"):
        find_items([tmp_path / "bad.zip"])


def test_digit_files_as_npz_and_idx_agree(tmp_path):
    digits = np.random.default_rng(0).integers(0, 256, (7, 28, 28), dtype=np.uint8)
    np.savez_compressed(tmp_path / "mnist.npz", x_train=digits, y_train=np.zeros(7))
    idx = struct.pack(">HBBIII", 0, 8, 3, 7, 28, 28) + digits.tobytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx)
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(idx)
    none = Augment("none")
    batches = [
        ImageCrops([tmp_path / name], crop=None, augment=none, samples=(1, 6))(9, seeded())
        for name in ("mnist.npz", "train-images-idx3-ubyte", "train-images-idx3-ubyte.gz")
    ]
    assert batches[0].shape == (9, 1, 28, 28) and all(torch.equal(batches[0], b) for b in batches)
    (tmp_path / "short.idx").write_bytes(idx[:-5])
    with pytest.raises(ValueError, match="short.idx: its header announces.*truncated"):
        find_items([tmp_path / "short.idx"])
    (tmp_path / "floats.idx").write_bytes(struct.pack(">HBBI", 0, 0x0D, 1, 0))
    with pytest.raises(ValueError, match="not an idx file of bytes"):
        read_idx(tmp_path / "floats.idx")
    np.savez(tmp_path / "two.npz", a=digits, b=digits)
    with pytest.raises(ValueError, match="two.npz: it must hold 'x_train' or a single array"):
        open_stack(tmp_path / "two.npz")


def test_sixteen_bits_and_arrays_keep_their_digits(tmp_path):
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 4096, (20, 20), dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert torch.equal(
        validation_batch([tmp_path / "wide.png"], side=20, full_scale=4095.0)[0, 0],
        torch.from_numpy(wide.astype(np.float32) / np.float32(4095)),
    )
    high = np.full((20, 20), 60_000, np.uint16)  # beyond int16
    Image.fromarray(high).save(tmp_path / "high.png")
    crops = ImageCrops([tmp_path / "high.png"], crop=8)
    assert torch.allclose(crops(2, seeded()), torch.tensor(60_000 / 65_535))
    floats = rng.random((3, 20, 20)).astype(np.float32)
    np.save(tmp_path / "floats.npy", floats)
    assert torch.equal(validation_batch([tmp_path / "floats.npy"], 3, side=20)[0], torch.from_numpy(floats))
    gray = validation_batch([tmp_path / "floats.npy"], 1, side=20)[0, 0]
    assert torch.allclose(gray, torch.from_numpy(np.tensordot([0.299, 0.587, 0.114], floats, 1)).float(), atol=1e-6)
    mixed = ImageCrops([tmp_path / "wide.png", tmp_path / "floats.npy"], crop=8)
    assert mixed.store.buffer.dtype == torch.float32 and 0 <= mixed(9, seeded()).min()


def test_celeba_layout_takes_the_split_of_the_partition_file(tmp_path):
    images = tmp_path / "img_align_celeba"
    images.mkdir()
    lines = []
    for index in range(6):
        Image.fromarray(np.full((30, 20, 3), 40 * index, np.uint8)).save(images / f"{index:06}.png")
        lines.append(f"{index:06}.png {index // 2}")
    (tmp_path / "list_eval_partition.txt").write_text("\n".join(lines))
    train = ImageCrops([tmp_path], crop=None, channels=3, split="train", centre=16)
    assert len(train) == 2 and train(3, seeded()).shape == (3, 3, 16, 16)
    assert [item.stem for item in find_items([tmp_path], split="test")] == ["000004", "000005"]
    (images / "000005.png").unlink()
    with pytest.raises(ValueError, match="000005.png is listed"):
        find_items([tmp_path], split="test")
    (tmp_path / "list_eval_partition.txt").write_text("000000.png 7\n")
    with pytest.raises(ValueError, match="line 1, must be"):
        find_items([tmp_path], split="test")


def test_mayo_layout_of_npy_folders_below_splits(tmp_path):
    for split, count in (("train", 3), ("test", 1)):
        for index in range(count):
            folder = tmp_path / split / f"patient{index}"
            folder.mkdir(parents=True)
            np.save(folder / "slice.npy", np.random.default_rng(index).random((24, 24)).astype(np.float32))
    crops = ImageCrops([tmp_path], crop=8, split="train", recursive=True)
    assert len(crops) == 3
    with pytest.raises(ValueError, match="there is no folder .*validation"):
        find_items([tmp_path], split="validation")
    with pytest.raises(ValueError, match="no images"):
        find_items([tmp_path], split="train")  # not recursive


def test_hdf5_as_lodopab_has_it(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    truth = np.random.default_rng(0).random((5, 36, 36)).astype(np.float32)
    path = tmp_path / "ground_truth_train_000.hdf5"
    with h5py.File(path, "w") as file:
        file["data"] = truth
    whole = validation_batch([path], side=36)
    assert torch.equal(whole[:, 0], torch.from_numpy(truth))
    assert len(ImageCrops([tmp_path], crop=12, samples=(1, 4))) == 3
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ValueError, match="ground_truth_train_000.hdf5 is not readable"):
        find_items([path])


def test_missing_optional_packages_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    (tmp_path / "a.h5").write_bytes(b"")
    with pytest.raises(ImportError, match="h5py: pip install"):
        find_items([tmp_path / "a.h5"])
    with pytest.raises(ImportError, match="pydicom: pip install"):
        read_dicom(b"")


# ---- CT


def test_windows_map_hounsfield_units_to_the_unit_interval():
    hounsfield = np.array([[-2000.0, -1024.0, 0.0, 240.0, 3071.0]])
    assert WINDOWS["full"].apply(hounsfield).tolist()[0] == pytest.approx([0, 0, 1024 / 4095, 1264 / 4095, 1])
    assert WINDOWS["soft-tissue"].apply(hounsfield).tolist()[0] == pytest.approx([0, 0, 0.4, 1, 1])
    own = WINDOWS["own"].apply(hounsfield)
    assert own.min() == 0 and own.max() == 1
    assert (WINDOWS["own"].apply(np.full((2, 2), 7.0)) == 0).all()
    for ends in ((1.0, 1.0), (None, 3.0)):
        with pytest.raises(ValueError, match="window must"):
            Window(*ends)


def test_dicom_slices_are_rescaled_windowed_and_ordered(tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    from pydicom.data import get_testdata_file

    path = get_testdata_file("CT_small.dcm")
    dataset = pydicom.dcmread(path)
    hounsfield = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    x = read_dicom(path, Window(-160, 240))
    assert x.dtype == np.float32 and np.allclose(x, ((hounsfield + 160) / 400).clip(0, 1), atol=1e-6)
    folder = tmp_path / "series"
    folder.mkdir()
    for name, place in (("b", 1.0), ("a", 2.0), ("c", -3.0)):  # without suffix, as scanners write them
        dataset.ImagePositionPatient = [0, 0, place]
        dataset.save_as(folder / name)
    assert [p.name for p in series_in_order(folder)] == ["c", "b", "a"]
    crops = ImageCrops([folder], crop=32, window=Window(-160, 240))
    assert len(crops) == 3 and torch.allclose(crops.store.image(0)[0], torch.from_numpy(x))
    (folder / "a").write_bytes((folder / "a").read_bytes()[:20_000])
    with pytest.raises(ValueError, match="a is not a readable image: its pixels cannot be decoded"):
        ImageCrops([folder], crop=32)
    (folder / "d.dcm").write_bytes(b"no medicine")
    with pytest.raises(ValueError, match="d.dcm is not a readable DICOM slice"):
        read_dicom(folder / "d.dcm")
    with pytest.raises(ValueError, match="must hold DICOM files"):
        series_in_order(tmp_path)


# ---- broken samples


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.png", b"not a picture", "a.png is not a readable image"),
        ("a.npy", b"not an array", "a.npy is not a readable array"),
        ("nan.npy", np.full((20, 20), np.nan), "nan.npy is not a readable array: it holds 400 NaN"),
        ("hu.npy", np.full((20, 20), 900.0), "values must be about"),
        ("flat.npy", np.zeros(20), r"shape must be \(H, W\)"),
        ("count.npy", np.zeros((20, 20), np.int64), "dtype must be floating point"),
    ],
)
def test_broken_samples_are_named_or_left_out_with_a_warning(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with pytest.raises(ValueError, match=message):
        ImageCrops([tmp_path], crop=8)
    with pytest.raises(ValueError, match="none of 1 samples could be read"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ImageCrops([tmp_path], crop=8, skip_broken=True)
    np.save(tmp_path / "good.npy", np.zeros((20, 20), np.float32))
    with pytest.warns(RuntimeWarning, match=name):
        assert len(ImageCrops([tmp_path], crop=8, skip_broken=True)) == 1


def test_bad_sampler_arguments_are_named(surfaces):
    folder, _ = surfaces
    for arguments, message in (
        ({"samples": (3, 3)}, "samples must be an increasing pair"),
        ({"samples": (9, 12)}, "samples must lie within"),
        ({"split": "training"}, "split must be one of"),
        ({"crop": None}, "not squares of one size"),
        ({"centre": 60}, "smaller than the centre of 60"),
        ({"full_scale": 0.0}, "full_scale must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageCrops([folder], **({"crop": 8} | arguments))


# ---- real data


@shared
@pytest.mark.parametrize(
    "source, options, count, shape",
    [
        ("mnist/mnist.npz", {"crop": None, "samples": (0, 50_000)}, 50_000, (1, 28, 28)),
        ("natural/bsds500/val", {"crop": 64}, 100, (1, 64, 64)),
        (
            "faces_lfw/lfw150_train.zip",
            {"crop": None, "centre": 128, "channels": 3, "samples": (4400, 4700)},
            300,
            (3, 128, 128),
        ),
        ("ct_mayo/train", {"crop": 128}, 113, (1, 128, 128)),
        ("ct_tcga_lung/slices", {"crop": 128, "full_scale": 4095.0}, 94, (1, 128, 128)),
    ],
)
def test_real_data_are_read(source, options, count, shape):
    crops = ImageCrops([Path(SHARED) / source], **options)
    batch = crops(4, seeded())
    assert len(crops) == count and batch.shape == (4, *shape)
    assert 0 <= batch.min() and batch.max() <= 1 and batch.std() > 0.02


@shared
def test_gray_photographs_are_luma():
    path = sorted((Path(SHARED) / "natural/bsds500/val").glob("*.jpg"))[0]
    gray, colour = read_gray_or_colour(path, 1).float(), read_gray_or_colour(path, 3).float()
    luma = torch.tensordot(torch.tensor([0.299, 0.587, 0.114]), colour, 1)
    assert (gray[0] - luma).abs().max() <= 1


# ---- synthetic images


@pytest.mark.parametrize("kind", ["dead-leaves", "ellipses", "phantoms"])
def test_synthetic_images_are_functions_of_their_seed(kind):
    a, b, other = (synthetic_images(kind, 2, 32, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, other)
    assert a.shape == (2, 1, 32, 32) and a.dtype == np.float32
    assert a.min() >= 0 and a.max() <= 1 and a.std() > 0.05
    crops = synthetic_crops(kind, crop=16, pool=2, side=32, channels=3)
    assert crops(3, seeded()).shape == (3, 3, 16, 16) and len(crops.names) == 2


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


# ---- densities


def brute_force_prox(prior, y):
    x = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    return torch.stack([x[(0.5 * (x - v) ** 2 + prior(x)).argmin()] for v in y])


@pytest.mark.parametrize("sigma", [0.5, 0.8, 1.3])  # at 1.3 the prox of the mixture jumps
@pytest.mark.parametrize("density", [Laplace(0.7), GaussianMixture(), GaussianMixture((0.3, 0.7), (-1, 2), (0.5, 1))])
def test_the_prox_of_a_density_is_the_minimiser(density, sigma):
    y = torch.linspace(-4, 4, 57, dtype=torch.float64) + 0.003
    expected = brute_force_prox(lambda x: density.prior(x, sigma), y)
    assert torch.allclose(density.prox(y, sigma), expected, atol=2e-4)


def test_the_mixtures_mmse_denoiser_is_the_conditional_mean_and_the_prox_of_its_prior():
    mixture, sigma = GaussianMixture(), 0.8
    x = torch.linspace(-9, 9, 40_001, dtype=torch.float64)
    y = torch.linspace(-3, 3, 31, dtype=torch.float64)
    weight = torch.exp(mixture.log_density(x)[None] - 0.5 * (x[None] - y[:, None]) ** 2 / sigma**2)
    mean = (weight * x).sum(1) / weight.sum(1)
    assert torch.allclose(mixture.posterior_mean(y, sigma), mean, atol=1e-8)
    # f = prox_R: 1/2 |f(y) - y|^2 + R(f(y)) is smallest among all values of f
    fine = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    f, prior = mixture.posterior_mean(fine, sigma), mixture.mmse_prior(fine, sigma)
    own = 0.5 * (mean - y) ** 2 + mixture.mmse_prior(y, sigma)
    assert (0.5 * (f[None] - y[:, None]) ** 2 + prior[None]).min(1).values.sub(own).min() > -1e-6


def test_samples_have_the_moments_and_quantiles_of_their_density():
    mixture, laplace = GaussianMixture((0.3, 0.7), (-1, 2), (0.5, 1)), Laplace(0.7)
    x = mixture.sample(200_000, seeded())
    assert x.mean() == pytest.approx(1.1, abs=0.02) and x.var() == pytest.approx(0.775 + 1.89, rel=0.02)
    levels = torch.tensor([0.025, 0.5, 0.9])
    assert torch.allclose(torch.quantile(x.double().flatten(), levels.double()), mixture.quantile(levels), atol=0.03)
    assert laplace.sample(200_000, seeded()).abs().mean() == pytest.approx(0.7, rel=0.02)
    grid = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    for density in (mixture, laplace):
        assert torch.trapezoid(density.log_density(grid).exp(), grid) == pytest.approx(1, abs=1e-4)
    step = 1e-5
    slope = (mixture.log_density(grid + step) - mixture.log_density(grid - step)) / (2 * step)
    assert torch.allclose(slope, mixture.score(grid), atol=1e-5)


def test_the_default_mixture_is_not_convex_but_weakly_so():
    mixture = GaussianMixture()
    x = torch.linspace(-4, 4, 2001, dtype=torch.float64)
    curvature = torch.gradient(-(mixture.SIGMA**2) * mixture.score(x), spacing=(x,))[0]
    assert -1 < curvature.min() < -0.5


def test_bad_densities_are_named():
    with pytest.raises(ValueError, match="weights must sum to 1"):
        GaussianMixture((0.5, 0.6))
    with pytest.raises(ValueError, match="scale must be positive, got 0.0"):
        Laplace(0.0)
