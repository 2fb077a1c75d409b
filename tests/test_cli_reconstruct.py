"""`lpn-fast reconstruct --physics ...`: every example of its help runs, on files as people have them."""

import math
import shlex
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import lpn_fast as lf
from lpn_fast import cli
from lpn_fast.cli import reconstruct as command
from lpn_fast.physics import MRI, Blur, CompressedSensing, Downsampling, ParallelBeamCT
from lpn_fast.pipeline import Reconstruct, problems
from lpn_fast.pipeline import reconstruct as run_job
from lpn_fast.pipeline.manifest import read_results

SIDE = 32

pytestmark = pytest.mark.usefixtures("one_thread")


def smooth(side=SIDE, count=1):
    """Disks before a ramp, in [0, 1], (N, 1, side, side)."""
    axis = torch.linspace(-1, 1, side)
    rows, columns = axis[:, None], axis[None]
    images = []
    for number in range(count):
        image = 0.3 + 0.1 * (rows + columns)
        for radius, level in ((0.6, 0.5), (0.25, -0.3)):
            distance = torch.hypot(rows - 0.1 * number, columns + 0.2 * radius)
            image = image + level * torch.sigmoid(side * (radius - distance))
        images.append(image)
    return torch.stack(images)[:, None].clamp(0, 1)


def noisy(y, level, seed=0):
    return y + level * torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))


def save_picture(path, x):
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.rint(255 * x.clamp(0, 1).numpy()).astype(np.uint8)).save(path)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """What the examples name, in the folder that the process is in."""
    monkeypatch.chdir(tmp_path)
    x = smooth(count=3)
    mask = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(0)) < 0.6
    blurred = noisy(Blur.gaussian(1.6).A(x), 0.02)
    for name in ("photos", "truths"):
        save_picture(tmp_path / name / "a.png", blurred[0, 0] if name == "photos" else x[0, 0])
    (tmp_path / "scans").mkdir()
    Pillow.fromarray(noisy(Blur(torch.ones(3, 3) / 9, "full").A(x), 0.01)[0, 0].numpy()).save("scans/a.tif")
    np.save("motion.npy", np.full((3, 3), 1 / 9))
    save_picture(tmp_path / "holes/a.png", noisy(x[0, 0], 0.02) * mask)
    save_picture(tmp_path / "seen.png", mask.float())
    save_picture(tmp_path / "small/a.png", noisy(Downsampling.gaussian(2).A(x), 0.01)[0, 0])
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (extra 'hdf5')")
    with h5py.File("sinograms.h5", "w") as file:
        sinograms = noisy(ParallelBeamCT(SIDE, 40, pixel=0.5).A(x), 0.05)[:, 0].numpy()
        file["scan"], file["dark_current"] = sinograms, np.zeros(7)
    (tmp_path / "scan.toml").write_text(f"size = {SIDE}\nangles = 40\npixel = 0.5\n")
    lines = MRI.lines(SIDE, acceleration=2).mask
    np.save("lines.npy", torch.fft.fftshift(lines).numpy())
    y = noisy(MRI(lines).A(torch.fft.ifftshift(x, dim=(-2, -1))), 0.01) * lines
    kspace = torch.fft.fftshift(torch.view_as_complex(y[:, 0].movedim(1, -1).contiguous()), dim=(-2, -1))
    with h5py.File("kspace.h5", "w") as file:
        file["kspace"], file["reconstruction_esc"] = kspace.numpy(), x[:, 0].numpy()
    operator = CompressedSensing(64, 0.25)
    np.save("vectors.npy", noisy(operator.A(smooth(64, 2)), 0.01)[:, 0].float().numpy())
    (tmp_path / "files.txt").write_text("photos/a.png\n")
    np.save("stack.npy", blurred.numpy())
    return tmp_path


def examples():
    lines = [line for line in command.__doc__.splitlines() if "lpn-fast reconstruct" in line and "s3:" not in line]
    return [line.split("   ")[0].strip() if "  " in line.strip() else line.strip() for line in lines]


@pytest.mark.parametrize("line", examples())
def test_every_example_of_the_help_runs(place, capsys, line):
    scipy_sparse = pytest.importorskip("scipy.sparse", reason="scipy is not installed")
    if "system.npz" in line:
        matrix = scipy_sparse.random(300, 1024, density=0.05, random_state=0, format="csr")
        scipy_sparse.save_npz("system.npz", matrix)
        np.save("vectors.npy", (matrix @ smooth(count=2).reshape(2, -1).numpy().T).T.astype(np.float32))
    words = shlex.split(line)
    assert words[:2] == ["lpn-fast", "reconstruct"]
    assert cli.main(words[1:]) == 0, capsys.readouterr()
    out = place / words[words.index("-o") + 1]
    results = [p for p in out.rglob("*") if p.suffix in (".png", ".tif", ".npy", ".h5") and "degraded" not in p.parts]
    assert len(results) == 1, results
    assert cli.main(words[1:]) == 0 and "0 done" in capsys.readouterr().out


def psnr(image, truth):
    return -10 * math.log10(float((torch.as_tensor(np.asarray(image, np.float64)) - truth).square().mean()))


def start_psnr(physics, y, truth):
    return psnr(lf.physics.start(physics, y), truth)


def run(*words):
    assert cli.main(["reconstruct", *map(str, words)]) == 0


def test_with_nothing_to_choose_a_photograph_is_reconstructed_as_by_the_library(place):
    """By lf.reconstruct, with what lies beyond the frame unknown; results have the size of their photographs."""
    run("photos", "-o", "out", "--noise", 0.02)
    y = torch.from_numpy(np.asarray(Pillow.open("photos/a.png"), np.float32) / 255)[None, None]
    wanted = lf.reconstruct(y, Blur.gaussian(1.6, boundary="valid"), noise=0.02).x[0, 0].clamp(0, 1).numpy()
    found = np.asarray(Pillow.open("out/a.png"), np.float64) / 255
    assert found.shape == (SIDE, SIDE) and np.abs(found - wanted).max() <= 0.51 / 255
    (line,) = read_results(place / "out").values()
    assert line.model == "fast-gray + natural-gray-deblur" and line.settings["boundary"] == "valid"
    run("photos", "-o", "pgd", "--noise", 0.02, "--solver", "pgd", "--iterations", 5)
    assert Pillow.open("pgd/a.png").size == (SIDE, SIDE)


@pytest.mark.parametrize("noise", ["0.05", "auto"])
def test_with_nothing_to_choose_measurements_are_reconstructed_as_by_the_library(place, noise):
    """The same networks, the same descent, the same estimate of the noise: CT had lost a decibel by its own rule."""
    x = smooth(count=2)
    scan, lines = ParallelBeamCT(SIDE, 40, pixel=0.5), MRI.lines(SIDE, acceleration=2)
    known = None if noise == "auto" else float(noise)
    for physics, words in ((scan, ["ct", "--geometry", "scan.toml"]), (lines, ["mri", "--mask", "mask.npy"])):
        y = noisy(physics.A(x), 0.05)
        y = y * lines.mask.to(y) if physics is lines else y
        np.save("mask.npy", lines.mask.numpy())
        np.save("y.npy", torch.view_as_complex(y[:, 0].movedim(1, -1).contiguous()) if physics is lines else y[:, 0])
        run("y.npy", "-o", words[0], "--noise", noise, "--physics", *words)
        wanted = lf.reconstruct(y, physics, noise=known).x
        assert np.abs(np.load(place / words[0] / "y.npy") - wanted[:, 0].numpy()).max() < 1e-3
        used = {line.model for line in read_results(place / words[0]).values()}
        assert used == {"fast-gray + natural-gray"}


@pytest.mark.parametrize(("boundary", "side"), [(None, SIDE), ("valid", SIDE - 4), ("full", SIDE)])
def test_simulated_photographs_are_compared_where_they_show_something(place, boundary, side):
    words = [] if boundary is None else ["--boundary", boundary]
    run("truths", "-o", "out", "--simulate", "--noise", 0.02, "--blur-size", "published", *words)
    (line,) = read_results(place / "out").values()
    assert line.settings["boundary"] == (boundary or "circular") and line.settings["kernel"].startswith("5x5:")
    assert (line.height, line.width) == (side, side) and line.psnr > line.psnr_before


def test_sinograms_become_the_slices_they_are_of(place):
    import h5py

    run("sinograms.h5", "-o", "out", "--physics", "ct", "--geometry", "scan.toml")
    with h5py.File("out/sinograms.h5") as file:
        assert list(file) == ["scan"]
        found = file["scan"][()]
    x, physics = smooth(count=3), ParallelBeamCT(SIDE, 40, pixel=0.5)
    y = noisy(physics.A(x), 0.05)
    assert found.shape == (3, SIDE, SIDE) and found.dtype == np.float32
    assert psnr(found[:, None], x) > start_psnr(physics, y, x) + 1


def test_kspace_in_the_usual_order_becomes_the_image_the_right_way_round(place):
    import h5py

    run("kspace.h5", "-o", "out", "--physics", "mri", "--mask", "lines.npy", "--centred")
    with h5py.File("out/kspace.h5") as file:
        assert list(file) == ["kspace"]
        found = file["kspace"][()]
    x, physics = smooth(count=3), MRI(MRI.lines(SIDE, acceleration=2).mask)
    y = physics.A(torch.fft.ifftshift(x, dim=(-2, -1)))
    zero_filled = torch.fft.fftshift(lf.physics.start(physics, y), dim=(-2, -1))
    assert psnr(found[:, None], x) > psnr(zero_filled, x) > 15


def test_coils_and_a_single_file(place):
    x = smooth(count=1)
    coils = torch.stack(
        [torch.linspace(0.2, 1, SIDE).expand(SIDE, SIDE), torch.linspace(1, 0.2, SIDE).expand(SIDE, SIDE)]
    )
    mask = MRI.lines(SIDE, acceleration=2).mask
    y = MRI(mask, coils).A(x)[0, 0]  # (coils, 2, H, W)
    np.save("mask.npy", mask.numpy())
    np.save("coils.npy", coils.to(torch.complex64).numpy())
    np.save("y.npy", torch.view_as_complex(y.movedim(1, -1).contiguous()).numpy())
    run("y.npy", "-o", "out", "--physics", "mri", "--mask", "mask.npy", "--coils", "coils.npy", "--noise", "0.01")
    assert psnr(np.load("out/y.npy"), x[0, 0]) > 25


def test_attenuations_are_read_and_written_in_their_own_unit(place):
    """An image of 0.2 to 0.9 of [0.01, 0.03] per mm, say."""
    low, high = 0.01, 0.03
    x, physics = smooth(count=1), ParallelBeamCT(SIDE, 40, pixel=0.5)
    y = noisy(physics.A(low + (high - low) * x), 0.05 * (high - low))
    np.save("y.npy", y[0, 0].numpy())
    options = ["--physics", "ct", "--geometry", "scan.toml", "--solver", "pgd"]
    run("y.npy", "-o", "own", *options, "--intensities", low, high, "--noise", 0.05 * (high - low))
    scaled = (np.load("own/y.npy") - low) / (high - low)
    np.save("y.npy", noisy(physics.A(x), 0.05)[0, 0].numpy())
    run("y.npy", "-o", "unit", *options, "--noise", 0.05)
    assert np.allclose(scaled, np.load("unit/y.npy"), atol=1e-3)


def test_missing_pixels_are_filled_and_the_noise_of_the_others_is_found(place):
    run("holes", "-o", "out", "--physics", "inpaint", "--mask", "seen.png")
    found = np.asarray(Pillow.open("out/a.png"), np.float64) / 255
    holes = np.asarray(Pillow.open("holes/a.png"), np.float64) / 255
    x = smooth(count=3)[0, 0]
    assert psnr(found, x) > psnr(holes, x) + 10


def test_float_tiff_and_zip_hold_measurements_as_well(place):
    sinogram = noisy(ParallelBeamCT(SIDE, 40, pixel=0.5).A(smooth()), 0.05)[0, 0]
    Pillow.fromarray(sinogram.numpy()).save("scan.tif")
    np.save("scan.npy", sinogram.numpy())
    with zipfile.ZipFile("scans.zip", "w") as archive:
        archive.write("scan.npy")
    run("scan.tif", "scan.npy", "scans.zip", "-o", "out", "--physics", "ct", "--geometry", "scan.toml")
    a, b = np.asarray(Pillow.open("out/scan.tif")), np.load("out/scan.npy")
    assert a.shape == b.shape == (SIDE, SIDE) and a.dtype == np.float32 and np.allclose(a, b, atol=1e-5)
    with zipfile.ZipFile("out/scans.zip") as archive, archive.open("scan.npy") as member:
        assert np.allclose(np.load(member), b, atol=1e-5)


def test_a_stack_of_sinograms_in_a_tiff_file_becomes_a_stack_of_slices(place):
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed (extra 'tiff')")
    sinograms = noisy(ParallelBeamCT(SIDE, 40, pixel=0.5).A(smooth(count=3)), 0.05)[:, 0].numpy()
    tifffile.imwrite("scans.tif", sinograms, photometric="minisblack")
    np.save("scans.npy", sinograms)
    run("scans.tif", "scans.npy", "-o", "out", "--physics", "ct", "--geometry", "scan.toml")
    slices = tifffile.imread("out/scans.tif")
    assert slices.shape == (3, SIDE, SIDE) and slices.dtype == np.float32
    assert np.array_equal(slices, np.load("out/scans.npy"))


def test_a_matrix_is_the_operator_that_it_says(place):
    sparse = pytest.importorskip("scipy.sparse", reason="scipy is not installed")
    x = smooth(count=2)
    blur = np.stack([Blur.gaussian(1.0).A(e[None, None])[0, 0].numpy().ravel()
                     for e in torch.eye(SIDE * SIDE).unflatten(1, (SIDE, SIDE))]).T  # fmt: skip
    sparse.save_npz("system.npz", sparse.csr_matrix(np.where(np.abs(blur) > 1e-9, blur, 0)))
    y = noisy(Blur.gaussian(1.0).A(x), 0.02)
    np.save("y.npy", y.flatten(2)[:, 0].numpy())
    options = ["--noise", "0.02", "--solver", "pgd", "--iterations", "20", "--model", "frame-gray"]
    run("y.npy", "-o", "out", "--physics", "matrix", "--operator", "system.npz", "--size", SIDE, SIDE, *options)
    task = Reconstruct(problems.blur(Blur.gaussian(1.0)), noise=0.02, solver="pgd", iterations=20)
    wanted = task.solve(y, lf.pretrained("frame-gray")).x[:, 0].numpy()
    assert np.abs(np.load("out/y.npy") - wanted).max() < 0.02  # ||A|| is bounded, not known: other steps
    physics = problems.matrix(sparse.load_npz("system.npz"), (SIDE, SIDE)).physics
    v = torch.rand(2, 3, SIDE, SIDE)
    assert float(lf.physics.adjoint_mismatch(physics, v, physics.A(v)).max()) < 1e-6


def test_simulated_measurements_of_any_kind(place):
    run("truths", "-o", "ct", "--physics", "ct", "--geometry", "scan.toml", "--simulate", "--noise", "0.05")
    run("truths", "-o", "mri", "--physics", "mri", "--mask", "lines.npy", "--centred", "--simulate", "--noise", "0.02")
    truth = torch.from_numpy(np.asarray(Pillow.open("truths/a.png"), np.float64) / 255)
    for name, shape in (("ct", (1, 40, 23)), ("mri", (1, 2, SIDE, SIDE))):
        assert psnr(np.asarray(Pillow.open(f"{name}/a.png"), np.float64) / 255, truth) > 20
        kept = np.load(f"{name}/degraded/a.png.npy")
        assert kept.ndim == len(shape) and kept.shape[0] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--physics", "ct"], "--physics ct needs --geometry"),
        (["--physics", "ct", "--geometry", "scan.toml", "--factor", "2"], "--factor has no effect with --physics ct"),
        (["--physics", "inpaint", "--mask", "nowhere.png"], "there is no mask file nowhere.png"),
        (["--physics", "inpaint", "--mask", "stack.npy"], "--mask must have 2 axes, got shape (3, 1, 32, 32)"),
        (
            ["--physics", "matrix", "--operator", "motion.npy", "--size", "2", "2"],
            "image_shape must have 3 entries, as the operator has columns, got (2, 2)",
        ),
        (["--physics", "ct", "--geometry", "seen.png"], "--geometry must be a TOML file, seen.png is none"),
        (["--physics", "ct", "--geometry", "odd.toml"], "odd.toml has detector"),
        (["--kernel", "motion.npy", "--blur-sigma", "2"], "are two blurs; give one of them"),
        (["--kernel", "kspace.h5"], "it must hold one array of 2 axes"),
        (["--kernel", "motion.npy", "--blur-size", "3"], "--kernel and --blur-size are two blurs"),
        (["--blur-size", "wide"], "--blur-size: must be a positive whole number or published, got 'wide'"),
        (["--solver", "gradient"], "model must have prior_and_grad"),
    ],
)
def test_what_is_wrong_with_an_operator_is_told_in_one_line(place, capsys, words, message):
    (place / "odd.toml").write_text("size = 32\nangles = 3\ndetector = 'flat'\n")
    assert cli.main(["reconstruct", "photos", "-o", "out", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (place / "out").exists()


def test_measurements_of_another_shape_or_kind_fail_alone(place):
    np.save("wide.npy", np.zeros((40, 99), np.float32))
    np.save("complex.npy", np.zeros((40, 46), np.complex64))
    np.save("nan.npy", np.full((40, 46), np.nan, np.float32))
    np.save("good.npy", ParallelBeamCT(SIDE, 40).A(smooth())[0, 0].numpy())
    (place / "scan.toml").write_text(f"size = {SIDE}\nangles = 40\n")
    physics = problems.ct(ParallelBeamCT(SIDE, 40))
    task = Reconstruct(physics, noise=0.1, solver="pgd", iterations=2)
    files = ["wide.npy", "complex.npy", "nan.npy", "good.npy", "seen.png"]
    summary = run_job(files, place / "out", task=task, model=lf.pretrained("fast-ct"))
    assert [r.item for r in summary.done] == ["good.npy"]
    errors = {r.item: r.error for r in summary.failed}
    assert "must have the shape (40, 46) that the operator measures, got (40, 99)" in errors["wide.npy"]
    assert "must hold real numbers, got complex64" in errors["complex.npy"]
    assert "1840 NaN" in errors["nan.npy"] and "floating-point" in errors["seen.png"]
