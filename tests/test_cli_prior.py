"""`lpn-fast prior`: a job like the others, whose results are the rows of one table."""

import csv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lpn_fast as lf
from lpn_fast.cli import build_parser

pytestmark = pytest.mark.usefixtures("one_thread", "seed_zero")


def run_cli(*arguments):
    args = build_parser("prior").parse_args(["prior", *map(str, arguments)])
    return args.run(args)


def test_the_command_scores_images_and_resumes(tmp_path, capsys):
    model = lf.ConvLPN(1, hidden=4, strides=(1, 2), alpha=0.1)
    lf.save(model, tmp_path / "model.safetensors")
    images = tmp_path / "images"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 12, 10), dtype=np.uint8)
    for index in range(3):
        Image.fromarray(pixels[index]).save(images / f"{index}.png")
    Image.fromarray(pixels.transpose(1, 2, 0)).save(images / "colour.png")
    (images / "broken.png").write_bytes(b"no image")
    out, options = tmp_path / "scores.csv", ["--model", tmp_path / "model.safetensors"]

    assert run_cli(images, "-o", out, *options) == 1
    assert "broken.png" in capsys.readouterr().out
    rows = {row["image"].rpartition("/")[2]: row for row in csv.DictReader(out.open())}
    x = torch.from_numpy(pixels[:, None] / np.float32(255))
    planes = lf.prior(model, x)
    values, residuals = planes.value, planes.residual
    assert float(rows["1.png"]["value"]) == pytest.approx(values[1].item(), rel=1e-6)
    assert float(rows["colour.png"]["value"]) == pytest.approx(values.sum().item(), rel=1e-6)
    assert all(row["converged"] == "True" for row in rows.values())
    worst = float(rows["colour.png"]["residual"])
    assert residuals.max() > 1.5 * residuals.min() and worst == pytest.approx(residuals.max().item(), rel=0.01)

    manifest = tmp_path / "scores.csv.job/manifest.jsonl"
    manifest.write_text(manifest.read_text()[:-20])  # as a kill in the middle of a line leaves it
    assert run_cli(images / "*[0-9r].png", "-o", out, *options) == 0
    assert "finished earlier" in capsys.readouterr().out
    again = {row["image"].rpartition("/")[2]: row for row in csv.DictReader(out.open())}
    assert again.keys() == rows.keys() and len(out.read_text().splitlines()) == 5
    assert all(float(again[k]["value"]) == pytest.approx(float(rows[k]["value"]), rel=1e-7) for k in rows)
    with pytest.raises(ValueError, match=r"other settings \(tol 1e-05 there, 0.001 now\)"):
        run_cli(images, "-o", out, *options, "--tol", "1e-3")
    with pytest.raises(ValueError, match=r"max_iter null there, 7 now"):
        run_cli(images, "-o", out, *options, "--max-iter", "7")


def test_an_image_that_has_changed_is_scored_again_in_its_one_row(tmp_path):
    lf.save(lf.ConvLPN(1, hidden=4, strides=(1, 2), alpha=0.1), tmp_path / "model.safetensors")
    generator, out = np.random.default_rng(0), tmp_path / "scores.csv"
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", generator.random((12, 10), np.float32))
    command = [tmp_path / "*.npy", "-o", out, "--model", tmp_path / "model.safetensors"]
    assert run_cli(*command) == 0
    before = {row["image"]: row["value"] for row in csv.DictReader(out.open())}
    np.save(tmp_path / "b.npy", generator.random((12, 10), np.float32))
    assert run_cli(*command) == 0
    after = [(row["image"], row["value"]) for row in csv.DictReader(out.open())]
    assert [Path(image).name for image, _ in after] == ["a.npy", "b.npy"]
    assert dict(after)[str(tmp_path / "a.npy")] == before[str(tmp_path / "a.npy")]
    assert dict(after)[str(tmp_path / "b.npy")] != before[str(tmp_path / "b.npy")]
    (tmp_path / "other").mkdir()
    np.save(tmp_path / "other/a.npy", generator.random((12, 10), np.float32))
    with pytest.raises(ValueError, match="a.npy, which is a result of another"):
        run_cli(tmp_path / "other", *command[1:])


def test_containers_are_scored_member_by_member(tmp_path):
    model = lf.ConvLPN(1, hidden=4, strides=(1, 2), alpha=0.1)
    lf.save(model, tmp_path / "model.safetensors")
    stack = np.random.default_rng(0).random((3, 1, 12, 10), np.float32)
    np.save(tmp_path / "stack.npy", stack)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        np.save(tmp_path / "a.npy", stack[0])
        archive.write(tmp_path / "a.npy", "=a.npy")
    out = tmp_path / "scores.csv"
    assert (
        run_cli(tmp_path / "*.zip", tmp_path / "stack.npy", "-o", out, "--model", tmp_path / "model.safetensors") == 0
    )
    rows = list(csv.DictReader(out.open()))
    assert [row["image"].rpartition("/")[2] for row in rows] == [
        "photos.zip::=a.npy",
        *(f"stack.npy::[{i}]" for i in range(3)),
    ]
    wanted = lf.prior(model, torch.from_numpy(stack)).value.tolist()
    assert [float(row["value"]) for row in rows] == pytest.approx([wanted[0], *wanted], rel=1e-6)
    assert not list(tmp_path.glob("scores.csv.job/*.parts"))


@pytest.mark.parametrize("content", [b"thesis", b"thesis\n", b"image,score\n", b""])
def test_a_file_that_is_no_table_of_this_command_is_left_alone(tmp_path, content):
    lf.save(lf.ConvLPN(1, hidden=4, strides=(1, 2)), tmp_path / "model.safetensors")
    np.save(tmp_path / "a.npy", np.zeros((12, 10), np.float32))
    (tmp_path / "notes").write_bytes(content)
    with pytest.raises(ValueError, match="--out must be a new file or one of this command"):
        run_cli(tmp_path / "a.npy", "-o", tmp_path / "notes", "--model", tmp_path / "model.safetensors")
    assert (tmp_path / "notes").read_bytes() == content and not (tmp_path / "notes.job").exists()


@pytest.mark.parametrize("images, out", [("s3://scans/noisy", "scores.csv"), ("scans", "memory://scores.csv")])
def test_images_and_scores_at_urls_are_refused(images, out):
    with pytest.raises(ValueError, match="must be files, got " + (images if "://" in images else out)):
        run_cli(images, "-o", out, "--sigma", "0.1")


def test_a_level_is_asked_for_before_anything_is_written(tmp_path):
    Image.fromarray(np.zeros((12, 10), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"sigma must be given, this model has a prior for each level from 0\.01"):
        run_cli(tmp_path / "a.png", "-o", tmp_path / "scores.csv")
    assert not (tmp_path / "scores.csv").exists()


def test_several_processes_share_the_scores_and_the_last_one_writes_the_table(tmp_path, monkeypatch, capsys):
    model = lf.ConvLPN(1, hidden=4, strides=(1, 2), alpha=0.1)
    lf.save(model, tmp_path / "model.safetensors")
    stack = np.random.default_rng(0).random((5, 1, 12, 10), np.float32)
    np.save(tmp_path / "stack.npy", stack)
    out = tmp_path / "scores.csv"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, done in ((1, 2), (0, 3)):
        assert not out.exists()
        monkeypatch.setenv("RANK", str(rank))
        assert run_cli(tmp_path / "stack.npy", "-o", out, "--model", tmp_path / "model.safetensors") == 0
        assert f"process {rank} of 2: {done} done" in capsys.readouterr().out
    rows = list(csv.DictReader(out.open()))
    wanted = lf.prior(model, torch.from_numpy(stack)).value.tolist()
    assert [row["image"].rpartition("::")[2] for row in rows] == [f"[{i}]" for i in range(5)]
    assert [float(row["value"]) for row in rows] == pytest.approx(wanted, rel=1e-6)
