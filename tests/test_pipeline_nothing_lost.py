"""Jobs lose nothing and overwrite nothing: strange folders, strange names, full disks, jobs beside each other."""

import errno
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import lpn_fast as lf
from lpn_fast import cli
from lpn_fast.pipeline import Denoise, Score, Share, reconstruct
from lpn_fast.pipeline.manifest import Manifest, open_manifest, read_results

SIDE = 8
ROOT = Path(lf.__file__).parents[1]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return lf.ConvLPN(1, hidden=2, strides=(1, 2), alpha=0.1, sigma_conditional=True).eval()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


def array(path, seed=0):
    np.save(path, np.random.default_rng(seed).random((SIDE, SIDE)).astype(np.float32))
    return path.read_bytes()


def denoised(path, model):
    with torch.no_grad():
        return model(torch.from_numpy(np.load(path))[None, None], sigma=0.1)[0, 0].numpy()


# ---- what was there before


def test_simulated_measurements_never_take_the_place_of_a_picture(folder, tmp_path, model):
    out, task = tmp_path / "out", Denoise(0.1)
    array(folder / "a.npy"), array(folder / "b.npy", 1)
    (out / "degraded").mkdir(parents=True)
    before = array(out / "degraded/a.npy", 2)
    summary = reconstruct(folder, out, task=task, model=model, simulate=True)
    assert [r.item for r in summary.done] == ["b.npy"]
    assert "is another picture than its simulated measurement" in summary.failed[0].error
    assert (out / "degraded/a.npy").read_bytes() == before and not (out / "a.npy").exists()
    with pytest.raises(ValueError, match="they would be overwritten"):
        reconstruct(out / "degraded", out, task=task, model=model, simulate=True)
    (folder / "degraded").mkdir()
    array(folder / "degraded/a.npy", 3)
    with pytest.raises(ValueError, match="must not be in a folder called degraded"):
        reconstruct(folder, tmp_path / "all", task=task, model=model, simulate=True, recursive=True)
    again = reconstruct(folder / "b.npy", out, task=task, model=model, simulate=True)
    assert [r.item for r in again.skipped] == ["b.npy"]


@pytest.mark.parametrize("content", [b'{"mine": 1}\n{"also mine": 2}', b"a line without end", b'{"item": 3}\n', b"\n"])
def test_a_manifest_of_somebody_else_is_judged_before_it_is_touched(folder, tmp_path, model, content):
    array(folder / "a.npy")
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.jsonl"):
        reconstruct(folder, out, task=Denoise(0.1), model=model)
    assert (out / "manifest.jsonl").read_bytes() == content


def test_the_advice_for_a_damaged_line_works(folder, tmp_path, model):
    out = tmp_path / "out"
    array(folder / "a.npy"), array(folder / "b.npy", 1)
    reconstruct(folder, out, task=Denoise(0.1), model=model)
    path = out / "manifest.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("{#" + lines[0][1:] + lines[1])
    with pytest.raises(ValueError, match="line 1 .* remove that line and the result that it records"):
        reconstruct(folder, out, task=Denoise(0.1), model=model)
    path.write_text(lines[1])
    (out / json.loads(lines[0])["item"]).unlink()
    summary = reconstruct(folder, out, task=Denoise(0.1), model=model)
    assert (len(summary.done), len(summary.skipped)) == (1, 1)


def test_the_report_takes_the_place_of_nothing_but_a_report(folder, tmp_path, capsys):
    before = array(folder / "a.npy")
    (tmp_path / "thesis.html").write_text("<!doctype html><p>mine")
    command = ["denoise", str(folder), "-o", str(tmp_path / "out"), "--sigma", "0.1", "--report"]
    for target, message in (
        (folder / "a.npy", "the report must be a .html file"),
        (tmp_path / "thesis.html", "is no report of an earlier job; it is not overwritten"),
    ):
        assert cli.main([*command, str(target)]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert (folder / "a.npy").read_bytes() == before and (tmp_path / "thesis.html").read_text().endswith("mine")
    for _ in range(2):
        assert cli.main([*command, str(tmp_path / "page.html")]) == 0


# ---- containers


def test_files_of_one_name_in_a_zip_are_all_kept(folder, tmp_path, model):
    arrays = [np.random.default_rng(i).random((SIDE, SIDE)).astype(np.float32) for i in range(3)]
    with zipfile.ZipFile(folder / "twins.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for name, content in zip(("a.npy", "b.npy", "a.npy"), arrays, strict=True):
            buffer = io.BytesIO()
            np.save(buffer, content)
            archive.writestr(name, buffer.getvalue())
    summary = reconstruct(folder, tmp_path / "out", task=Denoise(0.1), model=model)
    assert [r.item for r in summary.done] == ["twins.zip::a.npy[0]", "twins.zip::b.npy", "twins.zip::a.npy[1]"]
    with zipfile.ZipFile(tmp_path / "out/twins.zip") as archive:
        entries = archive.infolist()
        results = [np.load(io.BytesIO(archive.read(entry))) for entry in entries]
    assert [entry.filename for entry in entries] == ["a.npy", "b.npy", "a.npy"]
    with torch.no_grad():
        wanted = model(torch.from_numpy(np.stack(arrays))[:, None], sigma=0.1)[:, 0].numpy()
    assert np.allclose(results, wanted, atol=1e-6)


def test_members_that_are_no_images_keep_no_container_from_being_put_together(folder, tmp_path, model):
    image = np.random.default_rng(0).random((SIDE, SIDE)).astype(np.float32)
    np.savez(folder / "a.npz", image=image, labels=np.arange(SIDE), mask=image > 0.5, classes=np.zeros((8, 8), int))
    with zipfile.ZipFile(folder / "b.zip", "w") as archive:
        np.save(folder / "image", image)
        archive.write(folder / "image.npy", "image.npy")
        archive.writestr("readme.txt", "no image")
    (folder / "image.npy").unlink()
    np.savez(folder / "c.npz", labels=np.arange(SIDE))
    summary = reconstruct(folder, tmp_path / "out", task=Denoise(0.1), model=model)
    assert summary.passed_over == "4 members of containers ignored, no images" and not summary.incomplete
    assert np.load(tmp_path / "out/a.npz").files == ["image"]
    assert zipfile.ZipFile(tmp_path / "out/b.zip").namelist() == ["image.npy"]
    assert "holds no images, but labels of shape (8,) and type int64" in summary.failed[0].error


# ---- names


def test_names_as_long_as_a_file_system_allows(folder, tmp_path, model):
    long = "n" * 251 + ".npy"
    array(folder / long), array(folder / "short.npy", 1)
    np.save(folder / ("s" * 251 + ".npy"), np.random.default_rng(0).random((2, 1, SIDE, SIDE)).astype(np.float32))
    summary = reconstruct(folder, tmp_path / "out", task=Denoise(0.1), model=model, simulate=True)
    assert len(summary.done) == 4 and not summary.failed
    assert sorted(len(p.name) for p in (tmp_path / "out").glob("*.npy")) == [9, 255, 255]
    assert cli.main(["prior", str(folder), "-o", str(tmp_path / "s.csv"), "--sigma", "0.1", "--max-iter", "2"]) == 0


def test_names_that_are_not_utf8(folder, tmp_path, model, capsys):
    name = os.fsdecode(b"caf\xe9.npy")
    array(folder / name)
    path = lf.save(model, tmp_path / "model.safetensors")
    options = ["--model", str(path), "--sigma", "0.1"]
    page, table = tmp_path / "page.html", tmp_path / "s.csv"
    assert cli.main(["denoise", str(folder), "-o", str(tmp_path / "out"), *options, "--report", str(page)]) == 0
    assert cli.main(["denoise", str(folder), "-o", str(tmp_path / "sim"), *options, "--simulate"]) == 0
    assert cli.main(["prior", str(folder), "-o", str(table), *options]) == 0
    capsys.readouterr()
    assert np.allclose(np.load(tmp_path / "out" / name), denoised(folder / name, model), atol=1e-6)
    assert r"caf\udce9.npy" in page.read_text(encoding="utf-8") and r"caf\udce9.npy" in table.read_text("utf-8")
    (folder / name).write_bytes(b"broken")
    assert cli.main(["denoise", str(folder), "-o", str(tmp_path / "again"), *options]) == 1
    assert r"caf\udce9.npy" in capsys.readouterr().out


# ---- disks


def test_a_full_disk_keeps_what_fits_of_a_batch(folder, tmp_path, model, monkeypatch):
    """Room for a part of the lines only, all images in one batch."""
    for number in range(12):
        array(folder / f"{number:02d}.npy", number)
    out, append = tmp_path / "out", Manifest.append

    def with_little_room(self, *results):
        if len(results) > 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, *results)

    for task in (Denoise(0.1), Score(sigma=0.1, max_iter=2)):
        out = tmp_path / task.name
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(Manifest, "append", with_little_room)
            reconstruct(folder, out, task=task, model=model)
        recorded = {r.item for r in read_results(out).values()}
        assert len(recorded) == 7 and not list(out.glob(".*.tmp"))
        if task.makes_images:
            assert {p.name for p in out.glob("*.npy")} == recorded
        summary = reconstruct(folder, out, task=task, model=model)
        assert (len(summary.skipped), len(summary.done)) == (7, 5)


@pytest.mark.parametrize("command", ["denoise", "reconstruct", "prior"])
def test_a_small_real_disk(folder, tmp_path, model, command):
    """Whatever fits is kept, the error is one line, and with room the same command does the rest."""
    for number in range(150):
        array(folder / f"{number:03d}.npy", number)
    disk, checkpoint = tmp_path / "disk", lf.save(model, tmp_path / "model.safetensors")
    disk.mkdir()
    options = {"denoise": ["--sigma", "0.1"], "prior": ["--sigma", "0.1", "--max-iter", "2"]}.get(
        command, ["--noise", "0.1", "--iterations", "2"]
    )
    arguments = [command, str(folder), "-o", str(disk / "out"), "--model", str(checkpoint), *options, "--threads", "1"]
    code = f"import sys; from lpn_fast import cli; sys.exit(cli.main({arguments!r}))"
    mount = f'mount -t tmpfs -o size=96k,nr_inodes=1000 none {disk} && {sys.executable} -c "$CODE"'
    grown = f'mount -o remount,size=9m {disk}; {sys.executable} -c "$CODE"; echo then $?; cp -r {disk} {tmp_path}/kept'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mount}; echo first $?; ls -A {disk}/* | grep -c tmp; {grown}"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CODE": code},
        capture_output=True,
        text=True,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr or "not found" in done.stderr:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()[:80]}")
    assert "first 1\n0\n" in done.stdout and "then 0" in done.stdout, done.stdout + done.stderr
    assert "No space left" in done.stderr and "finished earlier" in done.stdout
    job = tmp_path / "kept" / ("out.job" if command == "prior" else "out")
    assert sum(r.status == "done" for r in read_results(job).values()) == 150


@pytest.mark.parametrize("command", ["denoise", "reconstruct", "prior"])
def test_a_disk_that_may_only_be_read_is_told_in_one_line(folder, tmp_path, model, command):
    array(folder / "a.npy")
    disk, checkpoint = tmp_path / "disk", lf.save(model, tmp_path / "model.safetensors")
    disk.mkdir()
    sigma = ["--noise" if command == "reconstruct" else "--sigma", "0.1"]
    arguments = [command, str(folder), "-o", str(disk / "out"), "--model", str(checkpoint), *sigma]
    code = f"import sys; from lpn_fast import cli; sys.exit(cli.main({arguments!r}))"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o ro none {disk} && {sys.executable} -c "$CODE"'],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CODE": code},
        capture_output=True,
        text=True,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr or "not found" in done.stderr:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()[:80]}")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Read-only file system" in done.stderr


# ---- side by side


def test_a_job_of_another_number_of_processes_does_not_run_beside_the_first(folder, tmp_path, model):
    array(folder / "a.npy")
    out = tmp_path / "out"
    out.mkdir()
    for running, other in (
        (Share(0, 2), Share(1, 3)),
        (Share(0, 2), Share(2, 3)),
        (Share(1, 3), Share(0, 2)),
        (Share(0, 1), Share(1, 2)),
    ):
        with open_manifest(out, running), pytest.raises(ValueError, match="another job writes to"):
            reconstruct(folder, out, task=Denoise(0.1), model=model, share=other)
    with open_manifest(out, Share(0, 2)), open_manifest(out, Share(1, 2)):
        pass  # those of one job run together, whatever ran there before


def test_refusals_name_the_settings_that_differ(folder, tmp_path, model):
    array(folder / "a.npy")
    reconstruct(folder, tmp_path / "out", task=Denoise(0.1), model=model, simulate=True)
    with pytest.raises(ValueError, match=r"other settings \(sigma 0\.1 there, 0\.2 now; seed 0 there, 1 now\)"):
        reconstruct(folder, tmp_path / "out", task=Denoise(0.2), model=model, simulate=True, seed=1)


def test_a_closed_pipe_ends_a_command_quietly():
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = f"{sys.executable} -m lpn_fast.cli info frame-gray | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_colour_names_that_spreadsheets_would_run_are_paths_in_the_table(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    Pillow.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save("=cmd.png")
    lf.save(model, "model.safetensors")
    command = ["prior", "=cmd.png", "-o", "s.csv", "--model", "model.safetensors", "--sigma", "0.1", "--max-iter", "2"]
    assert cli.main(command) == 0
    row = Path("s.csv").read_text().splitlines()[1]
    assert row.startswith('"./=cmd.png",') and Path("./=cmd.png").exists()
