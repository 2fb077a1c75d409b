"""What batch jobs read and write: containers, DICOM, odd pictures, garbage. Formats go in and come out alike."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

import lpn_fast as lf
from lpn_fast.io.sources import Source, find_sources
from lpn_fast.pipeline import Denoise, UnreadableImage, find_images, read_image, reconstruct, write_image
from lpn_fast.pipeline.problems import noise_levels

SIDE = 12
SIGMA = 0.05


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return lf.ConvLPN(1, hidden=4, strides=(1, 2), sigma_conditional=True).eval()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


def pixels(shape=(SIDE, SIDE), dtype=np.float32, seed=0):
    values = np.random.default_rng(seed).random(shape)
    return (values if np.dtype(dtype).kind == "f" else values * np.iinfo(dtype).max).astype(dtype)


def denoised(model, array, levels):
    """What the job has to store for one plane (H, W) of integers or floats, computed apart from it."""
    x = torch.from_numpy(array.astype(np.float32) / np.float32(levels or 1))[None, None]
    with torch.no_grad():
        out = model(x, sigma=SIGMA)[0, 0].double().numpy()
    return out if levels is None else np.rint(levels * out.clip(0, 1)).astype(array.dtype)


def run(source, out, model, **options):
    return reconstruct(source, out, task=Denoise(SIGMA), model=model, **options)


# ---- files of many images


def test_a_stack_comes_back_as_a_stack(folder, tmp_path, model):
    stack = pixels((5, 1, SIDE, SIDE), np.uint16)
    np.save(folder / "stack.npy", stack)
    summary = run(folder, tmp_path / "out", model)
    again = np.load(tmp_path / "out/stack.npy")
    assert again.dtype == stack.dtype and again.shape == stack.shape
    for before, after in zip(stack[:, 0], again[:, 0], strict=True):
        assert np.abs(denoised(model, before, 65535).astype(int) - after).max() <= 1
    assert [r.item for r in summary.everything] == [f"stack.npy::[{i}]" for i in range(5)]
    assert {p.name for p in (tmp_path / "out").iterdir() if p.suffix != ".lock"} == {"stack.npy", "manifest.jsonl"}


def test_arrays_of_an_npz_keep_names_shapes_and_dtypes(folder, tmp_path, model):
    arrays = {
        "plane": pixels(),
        "colour": pixels((3, SIDE, SIDE), np.uint8),
        "many": pixels((4, 3, SIDE, SIDE), np.float64),
    }
    np.savez_compressed(folder / "a.npz", **arrays)
    run(folder, tmp_path / "out", model)
    with np.load(tmp_path / "out/a.npz") as again:
        assert {n: (a.shape, a.dtype) for n, a in again.items()} == {n: (a.shape, a.dtype) for n, a in arrays.items()}
        assert np.allclose(again["plane"], denoised(model, arrays["plane"], None), atol=1e-6)
        assert np.allclose(again["many"][2, 1], denoised(model, arrays["many"][2, 1], None), atol=1e-6)


def test_pictures_of_a_zip_keep_names_and_formats(folder, tmp_path, model):
    names = {"b/gray.png": (SIDE, SIDE), "a/grün.tif": (SIDE, SIDE), "colour.bmp": (SIDE, SIDE, 3)}
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        archive.writestr("readme.txt", "not a picture")
        for seed, (name, shape) in enumerate(names.items()):
            buffer = io.BytesIO()
            Pillow.fromarray(pixels(shape, np.uint8, seed)).save(buffer, Path(name).suffix[1:].replace("tif", "tiff"))
            archive.writestr(name, buffer.getvalue())
    run(folder, tmp_path / "out", model)
    with zipfile.ZipFile(tmp_path / "out/photos.zip") as archive:
        assert archive.namelist() == list(names)
        after = np.asarray(Pillow.open(io.BytesIO(archive.read("a/grün.tif"))))
    assert np.abs(after.astype(int) - denoised(model, pixels(dtype=np.uint8, seed=1), 255)).max() <= 1


def test_datasets_of_an_h5_keep_groups_and_dtypes(folder, tmp_path, model):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (extra 'hdf5')")
    with h5py.File(folder / "a.h5", "w") as file:
        file["scan/images"] = pixels((3, 1, SIDE, SIDE), np.uint16)
        file["reference"] = pixels()
        file["time"] = np.arange(3.0)  # no image
    run(folder, tmp_path / "out", model)
    with h5py.File(tmp_path / "out/a.h5") as file:
        assert file["scan/images"].dtype == np.uint16 and file["scan/images"].shape == (3, 1, SIDE, SIDE)
        assert np.allclose(file["reference"], denoised(model, pixels(), None), atol=1e-6)
        assert "time" not in file


def test_a_container_with_a_bad_image_is_put_together_once_that_is_mended(folder, tmp_path, model):
    out = tmp_path / "out"
    stack = pixels((3, 1, SIDE, SIDE))
    stack[1, 0, 0, 0] = np.nan
    np.save(folder / "stack.npy", stack)
    summary = run(folder, out, model)
    assert [r.item for r in summary.failed] == ["stack.npy::[1]"] and "1 NaN" in summary.failed[0].error
    assert summary.incomplete == ("stack.npy",) and not (out / "stack.npy").exists()
    assert len(list((out / "stack.npy.parts").iterdir())) == 2
    np.save(folder / "stack.npy", np.nan_to_num(stack))  # mended, hence another file: other results stand in its place
    with pytest.raises(ValueError, match="is a result of another"):
        run(folder, out, model)
    summary = run(folder, tmp_path / "other", model)
    assert not summary.failed and (tmp_path / "other/stack.npy").exists()


def test_a_kill_before_a_container_is_put_together_costs_nothing(folder, tmp_path, model, monkeypatch):
    np.savez(folder / "a.npz", x=pixels(), y=pixels(seed=1))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("lpn_fast.io.containers.pack", killed)
        run(folder, tmp_path / "out", model)
    summary = run(folder, tmp_path / "out", model)
    assert len(summary.skipped) == 2 and not summary.done
    assert (tmp_path / "out/a.npz").exists() and not (tmp_path / "out/a.npz.parts").exists()
    assert len(run(folder, tmp_path / "out", model).skipped) == 2


def test_broken_containers_fail_alone(folder, tmp_path, model):
    np.save(folder / "good.npy", pixels())
    (folder / "a.zip").write_bytes(b"PK no zip")
    (folder / "b.npz").write_bytes(b"")
    with zipfile.ZipFile(folder / "c.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing else")
    summary = run(folder, tmp_path / "out", model)
    assert sorted(r.item for r in summary.failed) == ["a.zip", "b.npz", "c.zip"]
    assert "no images" in next(r.error for r in summary.failed if r.item == "c.zip")
    assert [r.item for r in summary.done] == ["good.npy"]


# ---- names and lists


def test_a_list_of_files_names_what_is_done(folder, tmp_path, model):
    for name in ("a.npy", "b.npy", "c.npy"):
        np.save(folder / name, pixels())
    (tmp_path / "list.txt").write_text(f"{folder}/c.npy\n\n{folder}/a.npy\n")
    assert [p.name for p in find_images(f"@{tmp_path}/list.txt")] == ["c.npy", "a.npy"]
    with pytest.raises(FileNotFoundError, match="no list of files"):
        find_images("@absent.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        find_images(f"@{tmp_path}/list.txt")


def test_names_in_other_alphabets_survive(folder, tmp_path, model):
    names = ["Größe 1.png", "写真.png", "snow ❄.npy", "new\nline.npy"]
    for name in names:
        if name.endswith("png"):
            Pillow.fromarray(pixels(dtype=np.uint8)).save(folder / name)
        else:
            np.save(folder / name, pixels())
    assert len(run(folder, tmp_path / "out", model).done) == 4
    assert len(run(folder, tmp_path / "out", model).skipped) == 4
    assert {p.name for p in (tmp_path / "out").iterdir() if p.suffix != ".lock"} == {*names, "manifest.jsonl"}


# ---- pictures


@pytest.mark.parametrize(
    ("mode", "suffix", "note"),
    [
        ("CMYK", ".jpg", "converted from mode CMYK to RGB, by no profile"),
        ("P", ".png", "converted from mode P to RGB"),
        ("1", ".png", "converted from mode 1 to L"),
        ("LA", ".png", "alpha channel dropped"),
    ],
)
def test_other_modes_are_converted_with_a_note(tmp_path, mode, suffix, note):
    Pillow.fromarray(pixels((SIDE, SIDE, 3), np.uint8)).convert(mode).save(tmp_path / f"a{suffix}")
    image = read_image(tmp_path / f"a{suffix}")
    assert note in image.notes
    write_image(tmp_path / f"b{suffix}", image.pixels, image.encoding)
    assert read_image(tmp_path / f"b{suffix}").pixels.shape == image.pixels.shape


def test_a_rotated_photograph_stays_rotated(folder, tmp_path, model):
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.fromarray(pixels((8, 20, 3), np.uint8)).save(folder / "a.jpg", exif=exif)
    run(folder, tmp_path / "out", model)
    with Pillow.open(tmp_path / "out/a.jpg") as after:
        assert after.size == (20, 8) and after.getexif()[0x0112] == 6


def test_an_intensity_range_goes_there_and_back(folder, tmp_path, model):
    hounsfield = (1000 * pixels() - 500).astype(np.float32)
    np.save(folder / "a.npy", hounsfield)
    run(folder, tmp_path / "out", model, intensities=(-1000.0, 1000.0))
    expected = 2000 * denoised(model, (hounsfield + 1000) / 2000, None) - 1000
    assert np.allclose(np.load(tmp_path / "out/a.npy"), expected, atol=1e-2)
    with pytest.raises(ValueError, match="other settings"):
        run(folder, tmp_path / "out", model, intensities=(-1000.0, 2000.0))
    with pytest.raises(ValueError, match="low < high"):
        run(folder, tmp_path / "out2", model, intensities=(1.0, 0.0))


def test_the_noise_level_is_found_from_the_image_alone():
    ramp = torch.linspace(0, 1, 128).expand(1, 128, 128)
    for sigma in (0.02, 0.2):
        noisy = ramp + sigma * torch.randn(1, 128, 128, generator=torch.Generator().manual_seed(0))
        assert noise_levels([noisy])[0] == pytest.approx(sigma, rel=0.05)
    assert noise_levels([torch.zeros(1, 1, 5)]) == [None]


# ---- DICOM


def dicom_slice(path, *, signed=True, bits=16, slope=2.0, intercept=-1000.0, modality="CT", position=0):
    """A CT slice of random values between air and bone, as pydicom writes it."""
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (extra 'ct')")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series"])
    dataset.Modality, dataset.PatientName, dataset.InstanceNumber = modality, "Phantom", position
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
    dataset.Rows = dataset.Columns = SIDE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    stored = np.random.default_rng(position).integers(0, 1000, (SIDE, SIDE))
    dataset.PixelData = stored.astype(np.int16 if signed else np.uint16).tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return pydicom.dcmread(path)


@pytest.mark.parametrize("signed", [False, True])
def test_a_dicom_series_keeps_its_rescale_and_says_it_was_processed(folder, tmp_path, model, signed):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (extra 'ct')")
    for position in range(3):
        dicom_slice(folder / f"{position}.dcm", signed=signed, position=position)
    assert len(run(folder, tmp_path / "out", model).done) == 3
    after = [pydicom.dcmread(tmp_path / f"out/{i}.dcm") for i in range(3)]
    before = [pydicom.dcmread(folder / f"{i}.dcm") for i in range(3)]
    for old, new in zip(before, after, strict=True):
        assert (new.RescaleSlope, new.RescaleIntercept, new.BitsStored) == (2.0, -1000.0, 16)
        assert new.pixel_array.dtype == old.pixel_array.dtype
        assert list(new.ImageType) == ["DERIVED", "PRIMARY", "AXIAL"] and "lpn_fast" in new.DerivationDescription
        assert new.SOPInstanceUID != old.SOPInstanceUID == old.file_meta.MediaStorageSOPInstanceUID
        assert new.PatientName == "Phantom" and new.InstanceNumber == old.InstanceNumber
        units = (2.0 * old.pixel_array - 1000.0 + 1024.0) / 4095.0
        wanted = 4095.0 * denoised(model, units.astype(np.float32), None) - 1024.0
        wanted = wanted.clip(-1000.0 if not signed else -np.inf)  # what unsigned numbers can express
        assert np.abs(2.0 * new.pixel_array - 1000.0 - wanted).max() <= 1.01  # half a stored step of 2 units
    assert (
        len({new.SeriesInstanceUID for new in after}) == 1 and after[0].SeriesInstanceUID != before[0].SeriesInstanceUID
    )


def test_reading_and_writing_a_dicom_file_gives_back_every_value(tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (extra 'ct')")
    old = dicom_slice(tmp_path / "a.dcm", bits=12, signed=False, modality="MR", slope=1.0, intercept=0.0)
    image = read_image(tmp_path / "a.dcm")
    assert image.encoding.intensities == (0.0, 4095.0) and 0 <= image.pixels.min() and image.pixels.max() <= 1
    write_image(tmp_path / "b.dcm", image.pixels, image.encoding)
    assert (pydicom.dcmread(tmp_path / "b.dcm").pixel_array == old.pixel_array).all()


def test_dicom_without_pydicom_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.dcm").write_bytes(b"\0" * 200)
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(UnreadableImage, match=r'pip install "lpn-fast\[ct\]"'):
        read_image(tmp_path / "a.dcm")


def test_h5_without_h5py_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.h5").write_bytes(b"\0" * 200)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    sources, broken, _ = find_sources(tmp_path / "a.h5")
    assert not sources and 'pip install "lpn-fast[hdf5]"' in str(broken[0])


# ---- garbage


def mutated(good, edits, length):
    """Bytes replaced at positions, then cut."""
    data = bytearray(good)
    for position, value in edits:
        data[position % len(data)] = value
    return bytes(data[: max(1, int(length * len(data)))])


EDITS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=12)
LENGTHS = st.sampled_from([1.0, 1.0, 1.0, 0.9, 0.5, 0.1])
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_names_of_datasets_that_are_no_text_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (extra 'hdf5')")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(b"caf\xe9", data=pixels())
    sources, broken, _ = find_sources(tmp_path / "a.h5")
    assert not sources and "must be UTF-8" in str(broken[0])


def test_mutated_checkpoints_are_read_or_refused(tmp_path, model):
    good = lf.save(model, tmp_path / "good.safetensors").read_bytes()
    path = tmp_path / "bad.safetensors"
    header = int.from_bytes(good[:8], "little")

    @FUZZ
    @given(st.lists(st.tuples(st.integers(0, header + 64), st.integers(32, 126)), min_size=1, max_size=4), LENGTHS)
    def check(edits, length):
        path.write_bytes(mutated(good, edits, length))
        try:
            lf.load(path)
        except ValueError as error:
            assert str(path) in str(error)

    check()


def test_a_manifest_line_is_plain_json(folder, tmp_path, model):
    np.save(folder / "写.npy", pixels())
    run(folder, tmp_path / "out", model)
    line = json.loads((tmp_path / "out/manifest.jsonl").read_bytes().decode("ascii"))
    assert line["item"] == "写.npy" and line["noise_estimate"] > 0.1 and line["seconds"] > 0
    assert Source(folder / "写.npy", Path("写.npy")).sha256() == line["source_sha256"]
