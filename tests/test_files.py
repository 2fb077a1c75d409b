"""Files of real life, in and out: what `python -m bench.files` shows, and what travels with the pixels."""

import io
import os
import struct
import sys
import tracemalloc
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from PIL.JpegImagePlugin import get_sampling

from lpn_fast.data import find_items
from lpn_fast.io import Encoding, members, read_image, write_image
from lpn_fast.io.containers import Images
from lpn_fast.io.formats import to_npy
from lpn_fast.io.sources import Source, find_sources

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # bench/ belongs to the checkout, not to the installed package

pytest.importorskip("tifffile", reason="tifffile is not installed (extra 'tiff')")
pytest.importorskip("pydicom", reason="pydicom is not installed (extra 'ct')")
pytest.importorskip("h5py", reason="h5py is not installed (extra 'hdf5')")
from bench import files, files_commands, real_files  # noqa: E402


@pytest.mark.parametrize("case", real_files.CASES, ids=lambda case: case.name)
def test_a_file_is_read_written_and_refused_as_it_should_be(case, tmp_path):
    right, shown, seen = files.tried(case, tmp_path)
    assert right, (shown, seen)


def test_a_wrong_value_is_noticed(tmp_path):
    case = real_files.CASES[0]
    for other in (case.expected + 1e-5, case.expected[..., :-1], "refused"):
        assert not files.tried(replace(case, expected=other), tmp_path)[0]
    assert not files.tried(replace(case, notes="uses"), tmp_path)[0]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """By command, by file: all of them in a folder."""
    folder = tmp_path_factory.mktemp("commands")
    return files_commands.through_commands(folder, lambda path, case: files.read_by_job(path, case)[0])


@pytest.mark.parametrize("command", ["train", "denoise", "reconstruct", "prior"])
def test_a_command_does_the_whole_folder_and_lists_what_it_refuses(verdicts, command):
    assert verdicts[command].keys() == {case.name for case in real_files.CASES}
    assert not {name: shown for name, (right, shown) in verdicts[command].items() if not right}
    refused = {name for name, (_, shown) in verdicts[command].items() if shown == "refused"}
    assert refused == {case.name for case in real_files.CASES if isinstance(case.expected, str)}


def test_a_wrong_value_or_reason_is_noticed_of_every_command(tmp_path, monkeypatch):
    by_name = {case.name: case for case in real_files.CASES}
    wrong = (
        replace(by_name["gray8.png"], expected=by_name["gray8.png"].expected + 0.01),
        replace(by_name["int8.tif"], expected="for another reason"),
    )
    monkeypatch.setattr(files_commands, "CASES", (*wrong, by_name["gray16.png"]))
    verdicts = files_commands.through_commands(tmp_path, lambda path, case: files.read_by_job(path, case)[0])
    for command, of_files in verdicts.items():
        holds = {name: right for name, (right, _) in of_files.items()}
        assert holds == {"gray8.png": False, "int8.tif": False, "gray16.png": True}, command


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_of_every_format_are_read_or_refused(tmp_path):
    """`python -m bench.files --fuzz 30000` is the same at length."""
    outcomes = [(case.name, reason) for _, case, reason in files.read_mutants(range(600), tmp_path)]
    refused = [(name, reason) for name, reason in outcomes if reason is not None]
    assert 100 < len(refused) < 550 and all(reason and "\n" not in reason for _, reason in refused)
    formats = {case.name for case in real_files.CASES if not isinstance(case.expected, str)}
    assert {name for name, _ in refused} >= formats - {"photo.jpg", "renamed.png", "two.mpo", "a.ppm", "a.pgm"}


# ---- what nobody is let in by


def test_headers_that_claim_more_than_their_file_holds_are_refused_before_anything_is_allocated(tmp_path):
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), np.uint8), compression="zlib")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            tag = tif.pages[0].tags[name]
            data[tag.offset + 2 : tag.offset + 12] = struct.pack("<HII", 4, 1, 200_000)
    (tmp_path / "a.tif").write_bytes(data)
    tifffile.imwrite(tmp_path / "deep.tif", real_files.STACK8, volumetric=True, tile=(16, 16, 16))
    data = bytearray((tmp_path / "deep.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "deep.tif") as tif:
        place = tif.pages[0].tags["ImageDepth"].offset
    data[place + 2 : place + 12] = struct.pack("<HII", 4, 1, 2**31)
    (tmp_path / "deep.tif").write_bytes(data)
    (tmp_path / "a.pgm").write_bytes(b"P5 200000 200000 255\n" + bytes(100))
    (tmp_path / "a.dcm").write_bytes(real_files.dicom(real_files.GRAY8, Rows=65535, Columns=65535))
    tracemalloc.start()
    for name in (
        "a.tif",
        "deep.tif",
        "a.pgm",
        "a.dcm",
        *(case.name for case in real_files.CASES if case.name.startswith("huge")),
    ):
        if name.startswith("huge"):
            next(case for case in real_files.CASES if case.name == name).write(tmp_path)
        sources, broken, _ = find_sources(tmp_path / name)
        with pytest.raises(ValueError, match="claims|announces"):
            raise broken[0] if broken else sources[0].read()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**26


def test_arrays_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("a.npy", to_npy(real_files.GRAY8))
        archive.writestr("a.npy", to_npy(real_files.GRAY8))
    _, (error,), _ = find_sources(tmp_path / "a.npz")
    assert "different names, got several a.npy" in str(error)


def test_arrays_of_a_type_without_a_range_are_images_where_intensities_are_given(tmp_path):
    np.savez(tmp_path / "a.npz", image=real_files.GRAY8, volume=real_files.GRAY8.astype(np.int32))
    sources, _, found = find_sources(tmp_path / "a.npz")
    assert [source.member.name for source in sources] == ["image"] and found.members == 1
    sources, _, found = find_sources(tmp_path / "a.npz", content=Images(any_type=True))
    assert [source.member.name for source in sources] == ["image", "volume"] and found.members == 0
    assert np.allclose(sources[1].read((0.0, 510.0))[0].pixels, real_files.GRAY8 / 510, atol=1e-6)
    np.savez(tmp_path / "a.npz", volume=real_files.GRAY8.astype(np.int32))
    _, (error,), _ = find_sources(tmp_path / "a.npz")
    assert "holds no images, but volume" in str(error) and "--intensities" in str(error)


def test_python_objects_are_never_unpickled(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    harmful = np.array([[Harmful()]], dtype=object)
    np.save(tmp_path / "a.npy", harmful, allow_pickle=True)
    np.savez(tmp_path / "b.npz", harmful=harmful, good=real_files.FLOAT)
    with pytest.raises(ValueError, match="Python objects"):
        read_image(tmp_path / "a.npy")
    assert [str(member) for member in members(tmp_path / "b.npz")[0]] == ["good"]
    assert find_items([tmp_path / "a.npy", tmp_path / "b.npz"]) and not (tmp_path / "executed").exists()


def test_a_stack_of_one_image_is_a_stack(tmp_path):
    np.save(tmp_path / "a.npy", real_files.FLOAT[None, None])
    (source,), broken, _ = find_sources(tmp_path / "a.npy")
    assert not broken and source.read()[0].pixels.shape == (1, *real_files.SIZE)


def test_links_in_hdf5_to_other_files_are_not_followed(tmp_path):
    import h5py

    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["a"] = real_files.GRAY8
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["link"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "a")
        file["own"] = real_files.GRAY8
    assert [str(member) for member in members(tmp_path / "a.h5")[0]] == ["own"]
    assert len(find_items([tmp_path / "a.h5"])) == 1


# ---- intensities


def test_intensities_hold_for_integers_and_a_file_that_uses_little_of_its_range_says_so(tmp_path):
    (tmp_path / "a.png").write_bytes(real_files.png(real_files.TWELVE))
    assert "6.2 % of its range; give the intensities" in read_image(tmp_path / "a.png").notes[0]
    image = read_image(tmp_path / "a.png", (0.0, 4095.0))
    assert image.notes == () and image.pixels.max() > 0.99
    again = write_image(tmp_path / "b.png", image.pixels, image.encoding)
    assert (np.asarray(Pillow.open(again)) == real_files.TWELVE).all()
    brighter = write_image(tmp_path / "c.png", 2 * image.pixels, image.encoding)  # beyond 4095: the type has room
    assert (np.asarray(Pillow.open(brighter)) == 2 * real_files.TWELVE).all()
    with pytest.raises(ValueError, match="must be about"):
        read_image(tmp_path / "a.png", (0.0, 255.0))


def test_signed_and_large_integers_come_back_through_their_intensities(tmp_path):
    for dtype in ("int8", "int16", "uint32", "int64"):
        stored = np.random.default_rng(0).integers(-100 * (dtype[0] == "i"), 100, (5, 7)).astype(dtype)
        np.save(tmp_path / "a.npy", stored)
        with pytest.raises(ValueError, match=f"{dtype} numbers, of no known range"):
            read_image(tmp_path / "a.npy")
        image = read_image(tmp_path / "a.npy", (-128.0, 127.0))
        again = np.load(write_image(tmp_path / "b.npy", image.pixels, image.encoding))
        assert again.dtype == stored.dtype and (again == stored).all()
        clipped = np.load(write_image(tmp_path / "c.npy", image.pixels * 1e30, image.encoding))
        assert clipped.max() > 0.99 * np.iinfo(dtype).max


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_numbers_that_are_converted_in_parts_are_the_same(dtype, monkeypatch):
    pixels, encoding = torch.rand(3, 7, 5), Encoding(".npy", dtype, intensities=(-5.0, 200.0))
    whole = encoding.to_stored(pixels)
    monkeypatch.setattr("lpn_fast.io.image.PART", 11)
    assert (encoding.to_stored(pixels) == whole).all() and whole.shape == (3, 7, 5) and whole.dtype == dtype


# ---- what travels with the pixels


def through(path, tmp_path):
    """The file after reading and writing, opened by Pillow."""
    image = read_image(path)
    return Pillow.open(write_image(tmp_path / f"again{path.suffix}", image.pixels, image.encoding))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_keeps_exif_profile_resolution_and_subsampling(tmp_path, subsampling):
    exif = Pillow.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    exif.get_ifd(0x8769)[0x829A] = 0.01  # exposure time
    options = {"dpi": (300, 300), "icc_profile": b"profile", "exif": exif, "subsampling": subsampling}
    (tmp_path / "a.jpg").write_bytes(real_files.pillow(real_files.RGB8, "JPEG", **options))
    again = through(tmp_path / "a.jpg", tmp_path)
    assert again.info["dpi"] == (300, 300) and again.info["icc_profile"] == b"profile"
    assert dict(again.getexif()) == dict(exif) | {0x8769: again.getexif()[0x8769]}
    assert again.getexif().get_ifd(0x8769)[0x829A] == pytest.approx(0.01)
    assert get_sampling(again) == subsampling


def test_png_and_webp_keep_exif_profile_and_resolution(tmp_path):
    exif = Pillow.Exif()
    exif[0x0112] = 3
    for kind, suffix in (("PNG", ".png"), ("WEBP", ".webp")):
        data = real_files.pillow(real_files.RGB8, kind, dpi=(300, 300), icc_profile=b"profile", exif=exif)
        (tmp_path / f"a{suffix}").write_bytes(data)
        again = through(tmp_path / f"a{suffix}", tmp_path)
        assert again.getexif()[0x0112] == 3 and again.info["icc_profile"] == b"profile"
        assert suffix == ".webp" or again.info["dpi"] == pytest.approx((300, 300), abs=0.01)


def test_a_jpeg_2000_codestream_stays_one(tmp_path):
    (tmp_path / "a.j2k").write_bytes(real_files.pillow(real_files.GRAY8, "JPEG2000", no_jp2=True))
    image = read_image(tmp_path / "a.j2k")
    again = write_image(tmp_path / "b.j2k", image.pixels, image.encoding).read_bytes()
    assert again.startswith(b"\xff\x4f\xff\x51")


def test_tiff_keeps_profile_resolution_names_and_layout(tmp_path):
    import tifffile

    planar = np.ascontiguousarray(real_files.RGB16.transpose(2, 0, 1))
    options = {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib", "iccprofile": b"profile"}
    options |= {"resolution": (300, 200), "resolutionunit": "CENTIMETER", "description": "kept", "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", planar, **options, extratags=[(274, "H", 1, 6, True)])
    image = read_image(tmp_path / "a.tif")
    write_image(tmp_path / "b.tif", image.pixels, image.encoding)
    with tifffile.TiffFile(tmp_path / "b.tif") as tif:
        (page,) = tif.pages
        assert (page.asarray() == planar).all() and page.planarconfig == 2 and page.compression == 8
        assert page.iccprofile == b"profile" and page.description == "kept" and page.tags.valueof(274) == 6
        assert page.tags.valueof(282) == (300, 1) and page.tags.valueof(296) == 3


def test_without_tifffile_plain_tiff_is_read_and_written_and_all_else_says_what_to_install(tmp_path, monkeypatch):
    plain, rest = {}, {}
    for case in real_files.CASES:
        if case.name.endswith(".tif") and not isinstance(case.expected, str) and case.intensities is None:
            (plain if case.name in ("gray16.tif", "lzw.tif", "inks.tif") else rest)[case.name] = case
            case.write(tmp_path)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    for name, case in plain.items():
        image = read_image(tmp_path / name)
        assert np.abs(image.pixels.numpy() - case.expected[0]).max() <= case.rounding, name
        again = read_image(write_image(tmp_path / f"again{name}", image.pixels, image.encoding))
        assert torch.equal(again.pixels, image.pixels) and again.encoding.dtype == image.encoding.dtype
    outcomes = {name: files.outcome(lambda name: read_image(tmp_path / name).pixels.numpy(), name) for name in rest}
    for name, seen in outcomes.items():  # refused, or right: never a wrong value
        right = not isinstance(seen, str) and np.abs(seen - rest[name].expected[0]).max() < 1e-6
        assert right or "lpn-fast[tiff]" in seen, (name, seen)
    assert "lpn-fast[tiff]" in outcomes["planar.tif"] and "lpn-fast[tiff]" in outcomes["pages.tif"]
    assert "lpn-fast[tiff]" in outcomes["imagej.tif"] and "lpn-fast[tiff]" in outcomes["volume.tif"]


def test_an_imagej_hyperstack_keeps_its_axes_and_its_description(tmp_path):
    import tifffile

    from lpn_fast.io import containers

    stack = real_files.noise(2, 3, 4, 8, 9, dtype=np.uint16)
    metadata = {"axes": "TZCYX", "spacing": 2.5, "unit": "um"}
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, resolution=(5, 5), metadata=metadata)
    parts = []
    for number, member in enumerate(containers.members(tmp_path / "a.tif")[0]):
        image, _ = Source(tmp_path / "a.tif", tmp_path, member).read()
        parts.append((member, write_image(tmp_path / f"{number}.npy", image.pixels, image.encoding)))
    containers.pack(tmp_path / "a.tif", parts, tmp_path / "b.tif")
    with tifffile.TiffFile(tmp_path / "b.tif") as tif:
        assert tif.series[0].axes == "TZCYX" and (tif.asarray() == stack).all()
        assert tif.imagej_metadata["spacing"] == 2.5 and tif.pages[0].tags.valueof(282) == (5, 1)
    (tmp_path / "lie.tif").write_bytes((tmp_path / "a.tif").read_bytes().replace(b"images=24", b"images=99"))
    with pytest.raises(ValueError, match="declares 99 images and holds 24"):
        read_image(tmp_path / "lie.tif")


COLOURS = real_files.noise(3, *real_files.SIZE, 3)
BILEVEL = np.where(real_files.STACK8 > 99, 255, 0).astype(np.uint8)
STACKS = {
    "lzw": (real_files.multi_page(*real_files.STACK8, compression="tiff_lzw"), real_files.planes(real_files.STACK8)),
    "colour": (real_files.multi_page(*COLOURS), np.concatenate([real_files.unit(c) for c in COLOURS])),
    "planar": (
        real_files.tiff(COLOURS.transpose(0, 3, 1, 2), photometric="rgb", planarconfig="separate", metadata=None),
        np.concatenate([real_files.unit(c) for c in COLOURS]),
    ),
    "fax": (real_files.multi_page(*BILEVEL, mode="1", compression="group4"), real_files.planes(BILEVEL)),
    "float": (
        real_files.tiff(real_files.noise(4, 8, 9, dtype=np.float32), photometric="minisblack", compression="zlib"),
        real_files.planes(real_files.noise(4, 8, 9, dtype=np.float32)),
    ),
    "white": (
        real_files.tiff(real_files.STACK8, photometric="miniswhite", compression="zlib", metadata=None),
        1 - real_files.planes(real_files.STACK8),
    ),
    "ome": (
        real_files.tiff(real_files.STACK8, ome=True, metadata={"axes": "ZYX"}),
        real_files.planes(real_files.STACK8),
    ),
    "alpha": (
        real_files.tiff(
            real_files.ALPHA16[None].repeat(2, 0), photometric="rgb", extrasamples=["unassalpha"], metadata=None
        ),
        np.concatenate(2 * [real_files.unit(real_files.ALPHA16[..., :3])]),
    ),
}


@pytest.mark.parametrize("name", STACKS)
def test_tiff_stacks_of_every_kind_come_back(name, tmp_path):
    made, expected = STACKS[name]
    notes = {"fax": "mode 1", "alpha": "alpha"}.get(name, "^$")
    right, shown, seen = files.tried(real_files.Case(f"{name}.tif", name, made, expected, notes=notes), tmp_path)
    assert right, (shown, seen)


def test_padding_of_a_dicom_slice_is_back_in_its_place_and_touches_nothing(tmp_path):
    import pydicom

    (tmp_path / "a.dcm").write_bytes(real_files.dicom(real_files.padded(), PixelPaddingValue=-2000))
    image = read_image(tmp_path / "a.dcm")
    write_image(tmp_path / "b.dcm", 0.5 * image.pixels, image.encoding)
    before, after = (pydicom.dcmread(tmp_path / name).pixel_array for name in ("a.dcm", "b.dcm"))
    outside = before == -2000
    assert outside.any() and (after[outside] == -2000).all()
    assert np.abs(after - np.rint(0.5 * (before + 1024.0) - 1024))[~outside].max() <= 1


def test_dicom_of_every_transfer_syntax_comes_back(tmp_path):
    """Files that pydicom brings: big-endian, run lengths, JPEG 2000, deflated, implicit types."""
    import pydicom

    folder = Path(pydicom.__file__).parent / "data/test_files"
    names = [
        "MR_small_bigendian",
        "MR_small_RLE",
        "MR_small_jp2klossless",
        "image_dfl",
        "MR_small_implicit",
        "CT_small",
    ]
    for name in names:
        before = pydicom.dcmread(folder / f"{name}.dcm")
        image = read_image(folder / f"{name}.dcm")
        write_image(tmp_path / "a.dcm", image.pixels, image.encoding)
        assert (pydicom.dcmread(tmp_path / "a.dcm").pixel_array == before.pixel_array).all(), name


def test_dicom_results_keep_what_kind_of_numbers_they_were(tmp_path):
    import pydicom

    for name, data in (
        ("float", real_files.dicom(real_files.FLOAT, modality="PT")),
        ("bare", real_files.dicom(real_files.GRAY16, modality="MR", preamble=False)),
        ("negative", real_files.dicom(real_files.GRAY8, modality="DX", PhotometricInterpretation="MONOCHROME1")),
    ):
        (tmp_path / name).write_bytes(data)
        image = read_image(tmp_path / name)
        write_image(tmp_path / f"{name}.again", image.pixels, image.encoding)
        before, after = (
            pydicom.dcmread(io.BytesIO(d), force=True) for d in (data, (tmp_path / f"{name}.again").read_bytes())
        )
        before.file_meta.TransferSyntaxUID = after.file_meta.TransferSyntaxUID
        assert after.PhotometricInterpretation == before.PhotometricInterpretation
        assert after.pixel_array.dtype == before.pixel_array.dtype
        assert (after.pixel_array == before.pixel_array).all()
