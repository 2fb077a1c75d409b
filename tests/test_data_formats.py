"""Loaders against real and made-up samples: formats, layouts, CT, what is broken."""

import gzip
import os
import struct
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lpn_fast.data import WINDOWS, Augment, ImageCrops, find_items, validation_batch
from lpn_fast.data.readers import Reader

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # bench/ belongs to the checkout, not to the installed package

from bench import real_files  # noqa: E402

SHARED = Path(os.environ.get("LPN_FAST_DATA") or Path(__file__).parents[2] / "shared" / "data")
shared = pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="LPN_FAST_DATA names no folder with the real data")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sample(path, content, reader):
    """What a reader makes of a file."""
    path.write_bytes(content)
    return find_items([path])[0].read(reader)


# ---- formats


def test_archives_are_read_without_unpacking(surfaces, tmp_path):
    folder, _ = surfaces
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"train/{path.name}")
        archive.writestr("notes.txt", "nothing to see")
    zipped = ImageCrops([tmp_path / "all.zip"], crop=9)
    assert find_items([tmp_path / "all.zip"])[0].name.endswith("all.zip:train/0.png") and len(zipped) == 3
    assert torch.equal(zipped(5, seeded()), ImageCrops([folder], crop=9)(5, seeded()))
    assert len(find_items([tmp_path / "all.zip"], exclude=["1"])) == 2
    content = bytearray((tmp_path / "all.zip").read_bytes())
    content[200:260] = bytes(60)  # inside the first member
    (tmp_path / "all.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"all.zip::train/0.png: "):
        ImageCrops([tmp_path / "all.zip"], crop=9)
    with zipfile.ZipFile(tmp_path / "deflated.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("flat.bmp", bytes(range(256)) * 400)
    content = bytearray((tmp_path / "deflated.zip").read_bytes())
    content[45:60] = b"\x55" * 15  # no valid Huffman table
    (tmp_path / "deflated.zip").write_bytes(content)
    with pytest.raises(ValueError, match="deflated.zip::flat.bmp: Error -3 while decompressing"):
        ImageCrops([tmp_path / "deflated.zip"], crop=9)
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="bad.zip: File is not a zip file"):
        ImageCrops([tmp_path / "bad.zip"])


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
        ImageCrops([tmp_path / "short.idx"])
    (tmp_path / "floats.idx").write_bytes(struct.pack(">HBBI", 0, 0x0D, 1, 0))
    with pytest.raises(ValueError, match="not an idx file of bytes"):
        ImageCrops([tmp_path / "floats.idx"])
    np.savez(tmp_path / "two.npz", a=digits, b=digits)
    with pytest.raises(ValueError, match="two.npz: it must hold one of x_train, data or a single array"):
        ImageCrops([tmp_path / "two.npz"])


def test_stacks_turn_gray_and_colour_into_each_other_as_files_do(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 20, 20), dtype=np.uint8)
    np.savez(tmp_path / "colour.npz", pixels)
    np.savez(tmp_path / "gray.npz", pixels[:, 0])
    for index in range(2):
        np.save(tmp_path / f"{index}.npy", pixels[index])
    files = [tmp_path / "0.npy", tmp_path / "1.npy"]
    assert torch.equal(validation_batch([tmp_path / "colour.npz"], 1, side=20), validation_batch(files, 1, side=20))
    repeated = validation_batch([tmp_path / "gray.npz"], 3, side=20)
    assert torch.equal(repeated, torch.from_numpy(pixels[:, :1].repeat(3, 1) / np.float32(255)))


def test_sixteen_bits_and_arrays_keep_their_digits(tmp_path):
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 4096, (20, 20), dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert torch.equal(
        validation_batch([tmp_path / "wide.png"], side=20, intensities=(0, 4095))[0, 0],
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
    with pytest.warns(RuntimeWarning, match="1 of 2 samples use under 0.125 of their range"):
        mixed = ImageCrops([tmp_path / "wide.png", tmp_path / "floats.npy"], crop=8)
    assert mixed.store.buffer.dtype == torch.float32 and 0 <= mixed(9, seeded()).min()


def test_layouts_of_folders_below_folders(tmp_path):
    for index in range(3):
        folder = tmp_path / f"patient{index}"
        folder.mkdir(parents=True)
        np.save(folder / "slice.npy", np.random.default_rng(index).random((24, 24)).astype(np.float32))
    assert len(ImageCrops([tmp_path], crop=8, recursive=True)) == 3
    with pytest.raises(ValueError, match="must hold images .*3 subfolders not looked into"):
        find_items([tmp_path])


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
    with pytest.raises(ValueError, match="ground_truth_train_000.hdf5: .*truncated"):
        ImageCrops([path])


def test_missing_optional_packages_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    (tmp_path / "a.h5").write_bytes(b"")
    with pytest.raises(ValueError, match="h5py: pip install"):
        ImageCrops([tmp_path / "a.h5"])
    with pytest.raises(ValueError, match="pydicom: pip install"):
        sample(tmp_path / "a.dcm", bytes(200), Reader(1))


# ---- CT


def test_windows_map_hounsfield_units_to_the_unit_interval(tmp_path):
    pytest.importorskip("pydicom", reason="pydicom is not installed")
    hounsfield = np.array([[-2000, -1024, 0, 240, 3071]], np.int16)
    content = real_files.dicom(hounsfield)

    def through(window):
        return sample(tmp_path / "a.dcm", content, Reader(1, WINDOWS.get(window, window)))[0, 0].tolist()

    assert through("full") == pytest.approx([-976 / 4095, 0, 1024 / 4095, 1264 / 4095, 1])  # as in jobs, not clipped
    assert through("soft-tissue") == pytest.approx([0, 0, 0.4, 1, 1])
    assert through("own") == pytest.approx([0, 976 / 5071, 2000 / 5071, 2240 / 5071, 1])
    assert through((0.0, 240.0)) == pytest.approx([0, 0, 0, 1, 1])
    flat = real_files.dicom(np.full((2, 2), 7, np.int16))
    assert (sample(tmp_path / "b.dcm", flat, Reader(1, "own")) == 0).all()
    with pytest.raises(ValueError, match="window must"):
        Reader(1, (1.0, 1.0))


def test_options_without_effect_are_refused(tmp_path):
    pytest.importorskip("pydicom", reason="pydicom is not installed")
    (tmp_path / "a.dcm").write_bytes(real_files.dicom(real_files.SIGNED))
    (tmp_path / "a.png").write_bytes(real_files.png(real_files.GRAY8))
    both = [tmp_path / "a.dcm", tmp_path / "a.png"]
    assert len(ImageCrops(both, crop=8, window=(-160.0, 240.0), intensities=(0, 200))) == 2
    with pytest.raises(ValueError, match="window is for DICOM files"):
        ImageCrops(both[1:], crop=8, window=(-160.0, 240.0))
    with pytest.raises(ValueError, match="not for DICOM"):
        ImageCrops(both[:1], crop=8, intensities=(0, 200))


def test_dicom_slices_are_rescaled_and_windowed(tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    from pydicom.data import get_testdata_file

    path = get_testdata_file("CT_small.dcm")
    dataset = pydicom.dcmread(path)
    hounsfield = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    x = find_items([path])[0].read(Reader(1, (-160.0, 240.0)))[0]
    assert x.dtype == np.float32 and np.allclose(x, ((hounsfield + 160) / 400).clip(0, 1), atol=1e-6)
    folder = tmp_path / "series"
    folder.mkdir()
    for name, place in (("b", 1.0), ("a", 2.0), ("c", -3.0)):  # without suffix, as scanners write them
        dataset.ImagePositionPatient = [0, 0, place]
        dataset.save_as(folder / name)
    crops = ImageCrops([folder], crop=32, window=(-160.0, 240.0))
    assert len(crops) == 3 and torch.allclose(crops.store.image(0)[0], torch.from_numpy(x))
    (folder / "a").write_bytes((folder / "a").read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"/a: .*pixel data"):
        ImageCrops([folder], crop=32)
    (folder / "d.dcm").write_bytes(b"no medicine")
    with pytest.raises(ValueError, match="d.dcm: it is no DICOM file"):
        ImageCrops([folder / "d.dcm"], crop=32)


# ---- broken samples


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.png", b"not a picture", "a.png: cannot identify"),
        ("a.npy", b"not an array", "a.npy: cannot identify"),
        ("nan.npy", np.full((20, 20), np.nan), "nan.npy: it holds 400 NaN"),
        ("hu.npy", np.full((20, 20), 900.0), "intensities must be about"),
        ("flat.npy", np.zeros(20), r"shape must be \(H, W\)"),
        ("count.npy", np.zeros((20, 20), np.int64), "int64 numbers, of no known range"),
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
    np.save(tmp_path / "small.npy", np.zeros((20, 3), np.float32))
    with pytest.raises(ValueError, match=r"2 of 3 samples cannot be used.*small.npy is \(20, 3\) pixels"):
        ImageCrops([tmp_path], crop=8)
    with pytest.warns(RuntimeWarning, match=name):
        assert len(ImageCrops([tmp_path], crop=8, skip_broken=True)) == 1


def test_bad_sampler_arguments_are_named(surfaces):
    folder, _ = surfaces
    for arguments, message in (
        ({"samples": (3, 3)}, "samples must be an increasing pair"),
        ({"samples": (9, 12)}, "samples must lie within"),
        ({"crop": None}, "not squares of one size"),
        ({"centre": 60}, "smaller than the centre of 60"),
        ({"intensities": (5, 5)}, "intensities must be an increasing pair"),
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
        ("ct_tcga_lung/slices", {"crop": 128, "intensities": (0, 4095)}, 94, (1, 128, 128)),
    ],
)
def test_real_data_are_read(source, options, count, shape):
    crops = ImageCrops([SHARED / source], **options)
    batch = crops(4, seeded())
    assert len(crops) == count and batch.shape == (4, *shape)
    assert 0 <= batch.min() and batch.max() <= 1 and batch.std() > 0.02


@shared
def test_gray_photographs_are_luma():
    path = sorted((SHARED / "natural/bsds500/val").glob("*.jpg"))[0]
    gray, colour = (torch.from_numpy(find_items([path])[0].read(Reader(channels))).float() for channels in (1, 3))
    luma = torch.tensordot(torch.tensor([0.299, 0.587, 0.114]), colour, 1)
    assert (gray[0] - luma).abs().max() <= 1


@shared
def test_digits_have_the_known_mean_and_spread():
    digits = validation_batch([SHARED / "mnist/mnist.npz"], side=28)
    assert digits.shape == (60_000, 1, 28, 28)
    assert digits.mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert digits.std().item() == pytest.approx(0.3081, abs=1e-4)


@shared
def test_sixteen_bit_slices_are_the_hounsfield_units_that_pillow_sees():
    path = sorted((SHARED / "ct_tcga_lung/slices").glob("*.png"))[0]
    with Image.open(path) as picture:
        stored = np.asarray(picture).astype(np.float32)  # HU + 1024
    x = validation_batch([path], side=512, intensities=(0, 4095))[0, 0].numpy()
    assert stored.max() > 255 and np.allclose(x, stored / 4095, atol=1e-6)
    tissue = np.abs(stored - 1024) < 200  # water and soft tissue are near 0 HU
    assert 0.05 < tissue.mean() < 0.9


@shared
def test_damaged_copies_of_real_files_are_named(tmp_path):
    photograph = sorted((SHARED / "natural/bsds500/val").glob("*.jpg"))[0]
    slice_ = sorted((SHARED / "ct_mayo/train").rglob("*.png"))[0]
    for path in (photograph, slice_):
        (tmp_path / path.name).write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=f"{path.name}: "):
            ImageCrops([tmp_path / path.name], crop=16)
        with pytest.warns(RuntimeWarning, match=path.name):
            assert len(ImageCrops([tmp_path / path.name, path], crop=16, skip_broken=True)) == 1
    digits = (SHARED / "mnist/mnist.npz").read_bytes()
    (tmp_path / "mnist.npz").write_bytes(digits[: len(digits) // 2])
    with pytest.raises(ValueError, match="mnist.npz: File is not a zip file"):
        ImageCrops([tmp_path / "mnist.npz"])
