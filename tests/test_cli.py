"""The command line: exit codes, one-line errors, help with examples, what is printed."""

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import lpn_fast as lf
from lpn_fast import cli
from lpn_fast.cli import tables

SIDE = 16

pytestmark = pytest.mark.usefixtures("one_thread")


def network(**options):
    """An untrained network, scaled so that its slopes lie below 1 and iterations converge."""
    torch.manual_seed(0)
    model = lf.ConvLPN(1, hidden=4, strides=(1, 2), **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "head" in name:
                parameter.mul_(0.02)
    return model


@pytest.fixture
def place(tmp_path):
    """A folder with images/a.png, images/b.png and model.safetensors."""
    (tmp_path / "images").mkdir()
    generator = np.random.default_rng(0)
    for name, shape in (("a.png", (SIDE, SIDE)), ("b.png", (SIDE, SIDE, 3))):
        Pillow.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / "images" / name)
    lf.save(network(sigma_conditional=True), tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def call(place, capsys):
    """Run a command on the images with the tiny model; (exit code, stdout, stderr)."""

    def run(command, *options, model="model.safetensors", images="images"):
        argv = [command, str(place / images), "-o", str(place / "out"), "--model", str(place / model)]
        code = cli.main([*argv, *map(str, options)])
        return code, *capsys.readouterr()

    return run


def assert_one_line(stderr, *words):
    assert stderr.count("\n") == 1 and stderr.endswith("\n"), stderr
    assert "Traceback" not in stderr
    for word in words:
        assert word in stderr, stderr


@pytest.mark.parametrize(
    "command", ["demo", "train", "reconstruct", "denoise", "info", "convert", "export", "bench", "completion"]
)
def test_help_shows_examples(capsys, command):
    assert cli.main([command, "--help"]) == 0
    assert f"lpn-fast {command}" in capsys.readouterr().out.split("examples:")[1]


def test_version_and_wrong_commands(capsys):
    assert cli.main(["--version"]) == 0
    assert lf.__version__ in capsys.readouterr().out
    for argv in ([], ["paint"], ["denoise", "x.png"], ["reconstruct", "--noise", "much"]):
        assert cli.main(argv) == 2
        assert_one_line(capsys.readouterr().err, "--help")


def test_reconstruct_prints_conditions_and_a_table(call, place):
    code, out, err = call("reconstruct", "--simulate", "--iterations", 3)
    assert code == 0, err
    assert "step size" in out and "PSNR before" in out and "mean" in out
    assert {path.name for path in (place / "out").iterdir() if path.suffix != ".lock"} == {
        "a.png",
        "b.png",
        "manifest.jsonl",
        "degraded",
    }
    code, out, err = call("reconstruct", "--simulate", "--iterations", 3)
    assert code == 0 and "0 done, 2 finished earlier" in out and "b.png" in out


@pytest.mark.parametrize("solver", ["pgd", "fista", "admm", "drs", "hqs"])
def test_reconstruct_with_a_kernel_file(call, place, solver):
    np.save(place / "kernel.npy", np.full((3, 4), 1 / 12, np.float32))
    options = ("--kernel", place / "kernel.npy", "--boundary", "full", "--solver", solver, "--strict")
    code, _, err = call("reconstruct", "--iterations", 2, *options)
    assert code == 0, err
    assert Pillow.open(place / "out/a.png").size == (SIDE - 3, SIDE - 2)


def test_denoise_one_image(call, place):
    code, out, err = call("denoise", "--sigma", 0.1, images="images/a.png")
    assert code == 0, err
    assert (place / "out/a.png").exists()


def test_failed_images_are_listed_with_exit_code_1(call, place):
    (place / "images/broken.png").write_text("no picture")
    np.save(place / "images/nan.npy", np.full((SIDE, SIDE), np.nan))
    code, out, _ = call("reconstruct", "--iterations", 2)
    assert code == 1
    assert "broken.png: cannot identify" in out and "nan.npy: it holds 256 NaN" in out
    assert "2 done, 2 failed" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--noise", -0.1), ("noise", "-0.1")),
        (("--blur-sigma", 0), ("sigma", "positive")),
        (("--sigma", 0), ("sigma", "positive")),
        (("--iterations", 0), ("iterations", "at least 1")),
        (("--threads", 0), ("--threads", "positive whole number")),
        (("--batch-pixels", 0), ("batch_pixels", "at least 1")),
        (("--noise", 0), ("noise", "positive")),
        (("--mask", "a.png"), ("--mask has no effect with --physics blur",)),
        (("--physics", "inpaint"), ("--physics inpaint needs --mask",)),
        (("--kernel", "absent.npy"), ("no kernel file absent.npy",)),
        (("--device", "toaster"), ("device", "toaster")),
    ],
)
def test_wrong_options_are_told_in_one_line(call, place, options, words):
    code, _, err = call("reconstruct", *options)
    assert code == 2
    assert_one_line(err, "lpn-fast reconstruct:", *words)
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("array", "words"),
    [(np.zeros(3), "shape"), (np.full((3, 3), np.nan), "finite"), (np.array([["a"]]), "numbers"), (None, "none")],
)
def test_wrong_kernels_are_told_in_one_line(call, place, array, words):
    if array is None:
        (place / "kernel.npy").write_text("no array")
    else:
        np.save(place / "kernel.npy", array)
    code, _, err = call("reconstruct", "--kernel", place / "kernel.npy")
    assert code == 2
    assert_one_line(err, "kernel", words)


def test_wrong_models_and_images_are_told_in_one_line(call, place):
    code, _, err = call("denoise", "--sigma", 0.1, model="unheard-of")
    assert code == 2
    assert_one_line(err, "--model", "unheard-of")
    (place / "foreign.safetensors").write_text("no model")
    code, _, err = call("denoise", "--sigma", 0.1, model="foreign.safetensors")
    assert code == 2
    assert_one_line(err, "foreign.safetensors")
    code, _, err = call("denoise", "--sigma", 0.1, images="nowhere")
    assert code == 2
    assert_one_line(err, "nowhere")
    (place / "empty").mkdir()
    code, _, err = call("denoise", "--sigma", 0.1, images="empty")
    assert code == 2
    assert_one_line(err, "empty", "found none")


def test_a_model_of_one_level_says_which(call, place):
    model = network()
    model.card = {"sigma": 0.1}
    lf.save(model, place / "model.safetensors")
    code, _, err = call("denoise", "--sigma", 0.05)
    assert code == 2
    assert_one_line(err, "0.1", "0.05")
    code, _, err = call("reconstruct", "--sigma", 0.05)
    assert code == 2
    assert_one_line(err, "sigma")
    code, out, err = call("reconstruct", "--iterations", 2)
    assert code == 0, err
    assert "its one noise level, 0.1" in out


def test_other_settings_do_not_overwrite(call):
    assert call("denoise", "--sigma", 0.1)[0] == 0
    code, _, err = call("denoise", "--sigma", 0.2)
    assert code == 2
    assert_one_line(err, "other settings", "another folder")


def test_interruption_says_how_to_go_on(call, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("lpn_fast.pipeline.reconstruct", interrupted)
    code, _, err = call("denoise", "--sigma", 0.1)
    assert code == 130
    assert_one_line(err, "interrupted", "same command")


def test_info_names_versions_backends_and_models(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for word in (lf.__version__, torch.__version__, "backends", "torch", "CUDA module", "shipped models"):
        assert word in out


def test_info_fits_on_a_screen_and_tells_the_rest_of_a_model(capsys, place):
    assert cli.main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 120
    assert "  frame-gray: gray, 8,114 parameters, noise 0.01 to 0.251" in lines
    assert cli.main(["info", "frame-gray"]) == 0
    out = capsys.readouterr().out
    assert "asymptotic_gain: 0.9994" in out and "result:\n    step: 1000" in out
    assert cli.main(["info", str(place / "model.safetensors")]) == 0
    assert "conv, channels=1" in capsys.readouterr().out
    assert cli.main(["info", "unheard-of"]) == 2
    assert_one_line(capsys.readouterr().err, "unheard-of")


def test_tables_align_numbers_and_average_what_is_known():
    rows = [("a", 20.0, None), ("bb", 30.0, 0.5)]
    assert tables.table(("name", "PSNR", "SSIM"), rows, mean_of=(1, 3)).splitlines() == [
        "name   PSNR    SSIM",
        "a     20.00       -",
        "bb    30.00  0.5000",
        "mean  25.00  0.5000",
    ]
    assert tables.csv_text(("name", "SSIM"), [("a", None)]) == '"name","SSIM"\n"a",""\n'
