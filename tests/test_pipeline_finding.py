"""Folders as people have them: subfolders, equal names, other files in between; nothing is passed over in silence."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import lpn_fast as lf
from lpn_fast import cli
from lpn_fast.io.finding import find
from lpn_fast.io.sources import Source
from lpn_fast.pipeline import Denoise, UnreadableImage, find_images, reconstruct

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return lf.ConvLPN(1, hidden=2, strides=(1, 2), sigma_conditional=True).eval()


def array(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.random.default_rng(seed).random((8, 8)).astype(np.float32))


@pytest.fixture
def tree(tmp_path):
    """Three images of one name, another one, and what else lies about."""
    root = tmp_path / "photos"
    for seed, name in enumerate(("a.npy", "one/a.npy", "two/a.npy", "two/deep/b.npy")):
        array(root / name, seed)
    for name in ("notes.txt", "list.txt", "picture.xyz", "README", ".hidden.npy", "one/video.mp4"):
        (root / name).write_bytes(b"x")
    (root / ".git").mkdir()
    array(root / ".git/c.npy")
    return root


def assert_denoised(tree, out, model, names):
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*.npy")) == sorted(names)
    for name, source in names.items():
        x = torch.from_numpy(np.load(source))[None, None]
        with torch.no_grad():
            wanted = model(x, sigma=0.1)[0, 0].numpy()
        assert np.allclose(np.load(out / name), wanted, atol=1e-6), name


def test_subfolders_are_done_if_asked_for_and_keep_their_structure(tree, tmp_path, model):
    out = tmp_path / "out"
    summary = reconstruct(tree, out, task=Denoise(0.1), model=model, recursive=True)
    names = {name: tree / name for name in ("a.npy", "one/a.npy", "two/a.npy", "two/deep/b.npy")}
    assert_denoised(tree, out, model, names)
    assert {r.item for r in summary.done} == set(names)
    assert summary.passed_over == "5 files ignored: mp4 1, no suffix 1, txt 2, xyz 1"
    again = reconstruct(tree, out, task=Denoise(0.1), model=model, recursive=True)
    assert len(again.skipped) == 4 and not again.done


def test_what_is_passed_over_is_counted_and_said(tree, tmp_path, model, capsys):
    summary = reconstruct(tree, tmp_path / "out", task=Denoise(0.1), model=model)
    said = "4 files ignored: no suffix 1, txt 2, xyz 1; 2 subfolders not looked into, which --recursive does"
    assert summary.passed_over == said and [r.item for r in summary.done] == ["a.npy"]
    path = lf.save(model, tmp_path / "model.safetensors")
    assert cli.main(["denoise", str(tree), "-o", str(tmp_path / "cli"), "--model", str(path)]) == 0
    assert said in capsys.readouterr().out
    (tmp_path / "others").mkdir()
    (tmp_path / "others/a.txt").touch()
    with pytest.raises(ValueError, match=r"must hold images .*, found none \(1 file ignored: txt 1\)"):
        find_images(tmp_path / "others")


def test_results_inside_the_folder_of_images_are_not_taken_for_images(tree, model):
    out = tree / "out"
    for _ in range(2):
        summary = reconstruct(tree, out, task=Denoise(0.1), model=model, recursive=True)
    assert len(summary.skipped) == 4 and not summary.done and not (out / "out").exists()


def test_files_of_one_name_in_different_folders_keep_their_folders(tree, tmp_path, model):
    out = tmp_path / "out"
    files = [tree / "two/a.npy", tree / "one/a.npy", tree / "two/deep/b.npy"]
    reconstruct(files, out, task=Denoise(0.1), model=model)
    assert_denoised(tree, out, model, {str(path.relative_to(tree)): path for path in files})
    assert [str(p) for p in find([tree / "one", tree / "two"]).places.values()] == ["one/a.npy", "two/a.npy"]


def test_patterns_keep_the_folders_below_their_fixed_part(tree):
    places = find(f"{tree}/*/a.npy").places
    assert [str(place) for place in places.values()] == ["one/a.npy", "two/a.npy"]
    assert [str(place) for place in find(f"{tree}/one/*.npy").places.values()] == ["a.npy"]
    assert [str(place) for place in find(f"{tree}/**/b.npy").places.values()] == ["two/deep/b.npy"]


def test_one_file_by_several_names_is_found_once(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert len(find_images(["a.npy", "./a.npy", "one/../a.npy", tree / "a.npy", "."])) == 1


def test_loops_of_links_are_passed_over_and_pipes_are_left_to_be_refused(tree):
    os.mkfifo(tree / "pipe.npy")
    (tree / "one/loop").symlink_to(tree)
    found = find(tree, recursive=True)
    assert len(found.places) == 5 and found.places[tree / "pipe.npy"] == Path("pipe.npy") and found.folders == 1
    with pytest.raises(UnreadableImage, match="no regular file"):
        Source(tree / "pipe.npy", Path("pipe.npy")).read()


def test_containers_of_one_name_are_put_together_in_their_folders(tmp_path, model):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "stack.npy", np.random.default_rng(len(name)).random((3, 1, 8, 8)).astype(np.float32))
    out = tmp_path / "out"
    reconstruct([tmp_path / "one", tmp_path / "two"], out, task=Denoise(0.1), model=model)
    assert {str(p.relative_to(out)) for p in out.rglob("*.npy")} == {"one/stack.npy", "two/stack.npy"}
    again = reconstruct([tmp_path / "one", tmp_path / "two"], out, task=Denoise(0.1), model=model)
    assert len(again.skipped) == 6 and not list(out.rglob("*.parts"))
