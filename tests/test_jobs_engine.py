"""Jobs of an engine: the same files, manifest and errors as those of one process, on a file system and at URLs."""

import json

import numpy as np
import pytest
from PIL import Image

import lpn_fast as lf
from lpn_fast import cli, jobs, pipeline
from lpn_fast.io import read_image
from lpn_fast.jobs import engine, inputs, places
from lpn_fast.pipeline import Denoise, Score
from lpn_fast.pipeline.manifest import read_results

pytestmark = pytest.mark.usefixtures("one_thread")
TASK, MODEL = Denoise(0.1), "frame-gray"


@pytest.fixture
def folder(tmp_path):
    """Pictures, a stack, and a file that is broken."""
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for number in range(7):
        Image.fromarray(rng.integers(60, 200, (20, 16 + number % 2), dtype=np.uint8)).save(folder / f"{number}.png")
    np.save(folder / "stack.npy", rng.random((4, 16, 16)).astype(np.float32))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    return folder


def in_files(out):
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.suffix in (".png", ".npy")
    }


def lines_of(out):
    """The manifest without the times."""
    return {item: vars(result) | {"seconds": None} for item, result in read_results(out).items()}


def test_files_and_manifest_are_those_of_one_process(folder, tmp_path):
    pipeline.reconstruct(folder, tmp_path / "one", task=TASK, model=lf.pretrained(MODEL))
    tally = jobs.reconstruct(folder, tmp_path / "out", task=TASK, model=MODEL, batch_images=3)
    assert (tally.done, tally.earlier, tally.failed, tally.incomplete) == (11, 0, 1, ())
    assert in_files(tmp_path / "out") == in_files(tmp_path / "one") and len(in_files(tmp_path / "out")) == 8
    assert lines_of(tmp_path / "out") == lines_of(tmp_path / "one")
    visible = {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")}
    assert visible == {*(f"{number}.png" for number in range(7)), "stack.npy", "manifest.jsonl"}


def test_either_engine_goes_on_with_what_the_other_did(folder, tmp_path):
    model = lf.pretrained(MODEL)
    pipeline.reconstruct(folder / "0.png", tmp_path / "out", task=TASK, model=model)
    tally = jobs.reconstruct(folder, tmp_path / "out", task=TASK, model=MODEL)
    assert (tally.done, tally.earlier) == (10, 1)
    summary = pipeline.reconstruct(folder, tmp_path / "out", task=TASK, model=model)
    assert (len(summary.done), len(summary.skipped)) == (0, 11)
    assert jobs.reconstruct(folder, tmp_path / "out", task=TASK, model=MODEL).earlier == 11


def test_nothing_is_overwritten(folder, tmp_path):
    jobs.reconstruct(folder, tmp_path / "out", task=TASK, model=MODEL)
    with pytest.raises(ValueError, match="result of other settings"):
        jobs.reconstruct(folder, tmp_path / "out", task=Denoise(0.2), model=MODEL)
    (folder / "0.png").write_bytes((folder / "1.png").read_bytes())
    with pytest.raises(ValueError, match="result of another"):
        jobs.reconstruct(folder, tmp_path / "out", task=TASK, model=MODEL)
    with pytest.raises(ValueError, match="they would be overwritten"):
        jobs.reconstruct(folder, folder, task=TASK, model=MODEL)
    with pytest.raises(ValueError, match="another job writes"):
        with pipeline.manifest.open_manifest(tmp_path / "out"):
            jobs.reconstruct(folder / "2.png", tmp_path / "out", task=TASK, model=MODEL)


class Killed(BaseException):
    pass


def test_a_worker_that_ends_between_any_two_steps_costs_its_batch_only(folder, tmp_path, monkeypatch):
    out, puts = tmp_path / "out", []
    put = places.Folder.put

    def put_some(self, files):
        puts.append(files)
        if len(puts) == 4:  # the results of the second batch: its lines are there, half of its results follow
            put(self, dict(list(files.items())[: len(files) // 2]))
        if len(puts) >= 4:  # batches that wait for the writer come too late
            raise Killed
        put(self, files)

    monkeypatch.setattr(places.Folder, "put", put_some)
    monkeypatch.setattr(engine, "WRITERS", 1)  # one batch after the other
    with pytest.raises(Killed):
        jobs.reconstruct(folder, out, task=TASK, model=MODEL, batch_images=3)
    monkeypatch.undo()
    left = set(in_files(out))
    tally = jobs.reconstruct(folder, out, task=TASK, model=MODEL, batch_images=3)
    assert (tally.done + tally.earlier, tally.failed) == (11, 1) and 3 <= tally.earlier < 7 and len(left) < 8
    assert len([path for path in out.iterdir() if path.name.startswith("manifest")]) == 1
    pipeline.reconstruct(folder, tmp_path / "one", task=TASK, model=lf.pretrained(MODEL))
    assert in_files(out) == in_files(tmp_path / "one")


def test_values_of_the_prior_are_lines_only(folder, tmp_path):
    tally = jobs.reconstruct(folder, tmp_path / "out", task=Score(0.1, max_iter=2), model=MODEL)
    assert tally.done == 11 and in_files(tmp_path / "out") == {}
    assert jobs.reconstruct(folder, tmp_path / "out", task=Score(0.1, max_iter=2), model=MODEL).earlier == 11


def test_a_batch_is_bounded_in_images_and_bytes(folder, monkeypatch):
    sources = list(inputs.find(folder, False, "elsewhere", pipeline.job.content_of(TASK, False, None)).index.sources())
    assert [len(batch) for batch in inputs.batches(sources, 5)] == [5, 5, 2]
    monkeypatch.setattr(inputs, "MOST_BYTES", 700)
    sizes = [[inputs._size(source) for source in batch] for batch in inputs.batches(sources)]
    assert len(sizes) > 2 and all(sum(batch) <= 700 or len(batch) == 1 for batch in sizes)


def test_rows_say_all_that_a_source_says(folder):
    sources = list(inputs.find(folder, False, "elsewhere", pipeline.job.content_of(TASK, False, None)).index.sources())
    again = inputs.from_columns(inputs.to_columns(sources))
    assert [(s.item, s.member, s.position) for s in again] == [(s.item, s.member, s.position) for s in sources]
    assert all(source.path.is_absolute() for source in again)


# ---- URLs


fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (extra 'remote')")


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    yield fs
    fs.rm("/", recursive=True)


@pytest.fixture
def remote(folder, memory):
    """The pictures at a URL, one of them in a subfolder, beside something else."""
    for path in folder.glob("*.png"):
        memory.pipe(f"/data/in/{'sub/' if path.name == '6.png' else ''}{path.name}", path.read_bytes())
    memory.pipe("/data/in/readme.txt", b"pictures")
    return "memory://data/in"


def at(memory, place):
    return {name.rpartition(f"{place}/")[2]: memory.cat(name) for name in memory.find(place) if name.endswith(".png")}


def test_results_at_a_url_are_those_in_a_folder(folder, remote, memory, tmp_path):
    pipeline.reconstruct(folder, tmp_path / "one", task=TASK, model=lf.pretrained(MODEL))
    tally = jobs.reconstruct(remote, "memory://data/out", task=TASK, model=MODEL, recursive=True, batch_images=2)
    assert (tally.done, tally.failed) == (7, 1)
    results = at(memory, "/data/out")
    assert results.pop("sub/6.png") == (tmp_path / "one/6.png").read_bytes()
    assert results == {f"{i}.png": (tmp_path / f"one/{i}.png").read_bytes() for i in range(6)}
    manifests = [name for name in memory.find("/data/out") if name.endswith(".jsonl")]
    assert manifests == ["/data/out/manifest.jsonl"]
    lines = [json.loads(line) for line in memory.cat(manifests[0]).splitlines()]
    assert {line["source"] for line in lines} == set(
        f"{remote}/{n}" for n in (*(f"{i}.png" for i in range(6)), "sub/6.png", "broken.png")
    )
    again = jobs.reconstruct(remote, "memory://data/out", task=TASK, model=MODEL, recursive=True)
    assert (again.done, again.earlier, again.failed) == (0, 7, 1)


def test_an_object_that_was_changed_since_is_noticed(remote, memory):
    jobs.reconstruct(remote, "memory://data/out", task=TASK, model=MODEL)
    memory.pipe("/data/in/0.png", memory.cat("/data/in/1.png"))
    with pytest.raises(
        ValueError, match="memory://data/out/0.png, which is a result of another memory://data/in/0.png"
    ):
        jobs.reconstruct(remote, "memory://data/out", task=TASK, model=MODEL)
    with pytest.raises(ValueError, match="would be overwritten"):
        jobs.reconstruct(remote, remote, task=TASK, model=MODEL)


def test_urls_name_files_folders_patterns_and_lists(remote, memory, tmp_path):
    content = pipeline.job.content_of(TASK, False, None)

    def items(images, recursive=False):
        return [source.item for source in inputs.find(images, recursive, "out", content).index.sources()]

    assert items(f"{remote}/1.png") == ["1.png"]
    assert items(remote) == [*(f"{i}.png" for i in range(6)), "broken.png"]
    assert items(f"{remote}/[0-2].png") == ["0.png", "1.png", "2.png"]
    assert "sub/6.png" in items(remote, recursive=True)
    (tmp_path / "list.txt").write_text(f"{remote}/3.png\n{remote}/1.png\n")
    assert items(f"@{tmp_path / 'list.txt'}") == ["3.png", "1.png"]
    with pytest.raises(FileNotFoundError, match="no images at memory://data/nothing"):
        items("memory://data/nothing")
    missing = jobs.reconstruct(f"{remote}/none.png", tmp_path / "out", task=TASK, model=MODEL)
    assert missing.failed == 1 and "cannot be read" in missing.failures[0].error


def test_parts_at_a_url_are_merged_and_small_ones_removed(remote, memory, monkeypatch):
    monkeypatch.setattr("lpn_fast.jobs.ledger.MERGED", 3)
    jobs.reconstruct(remote, "memory://data/out", task=TASK, model=MODEL, batch_images=1)
    manifests = [name for name in memory.find("/data/out") if name.endswith(".jsonl")]
    lines = [len(memory.cat(name).splitlines()) for name in manifests]
    assert (
        sorted(lines) == [1, 3, 3]
        and jobs.reconstruct(remote, "memory://data/out", task=TASK, model=MODEL).earlier == 6
    )


def test_requests_are_repeated_a_few_times_and_no_more(monkeypatch):
    pauses, calls = [], []
    monkeypatch.setattr(places.time, "sleep", pauses.append)

    def busy(name):
        calls.append(name)
        raise OSError("503 Slow Down")

    with pytest.raises(OSError, match="Slow Down"):
        places.retried(busy, "a")
    assert len(calls) == places.ATTEMPTS and len(pauses) == places.ATTEMPTS - 1 and sum(pauses) < 15
    with pytest.raises(PermissionError):
        places.retried(lambda: (_ for _ in ()).throw(PermissionError("403")))
    assert len(pauses) == places.ATTEMPTS - 1


# ---- the command


def test_the_command_takes_urls(remote, memory, tmp_path, capsys):
    command = ["denoise", remote, "-o", str(tmp_path / "out"), "--sigma", "0.1", "--model", MODEL]
    assert cli.main(command) == 1  # one is broken
    assert "6 done, 1 failed" in capsys.readouterr().out
    assert read_image(tmp_path / "out/0.png").pixels.shape == (1, 20, 16)
    assert cli.main([*command, "--simulate"]) == 2
    assert "--simulate is for jobs of one machine, not for URLs: give it images of a folder" in capsys.readouterr().err
    assert cli.main([*command, "--report", str(tmp_path / "page.html")]) == 2
    assert "--report is for jobs of one machine, not for URLs: manifest.jsonl" in capsys.readouterr().err
    assert cli.main([*command, "--workers", "2"]) == 2
    assert "--address and --workers need --engine ray" in capsys.readouterr().err
    assert cli.main(["denoise", "s4://bucket", "-o", str(tmp_path / "other"), "--sigma", "0.1"]) == 2
    assert "s4" in capsys.readouterr().err


def test_a_report_is_made_of_what_an_engine_did(folder, tmp_path, capsys):
    """As the error says: the job, then the same command with --report on one machine, which computes nothing."""
    command = ["denoise", str(folder), "-o", str(tmp_path / "out"), "--sigma", "0.1", "--model", MODEL]
    page = tmp_path / "page.html"
    assert cli.main([*command, "--report", str(page), "--engine", "ray"]) == 2
    assert "run the job without --report, then once more with it and without --engine" in capsys.readouterr().err
    jobs.reconstruct(folder, tmp_path / "out", task=TASK, model=MODEL)
    assert cli.main([*command, "--report", str(page)]) == 1
    assert "0 done, 11 finished earlier, 1 failed" in capsys.readouterr().out
    assert page.read_text().count("stack.npy::") >= 4


def test_containers_at_urls_are_refused_by_name_and_cost_nothing_else(remote, memory, folder, tmp_path):
    memory.pipe("/data/in/scans.h5", b"anything")
    memory.pipe("/data/in/stack.npy", (folder / "stack.npy").read_bytes())
    pages = [Image.fromarray(np.zeros((16, 16), np.uint8))] * 2
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    memory.pipe("/data/in/pages.tif", (folder / "pages.tif").read_bytes())
    tally = jobs.reconstruct(remote, tmp_path / "out", task=TASK, model=MODEL)
    reasons = {failure.source.rpartition("/")[2]: failure.error for failure in tally.failures}
    assert tally.done == 6 and set(reasons) == {"broken.png", "scans.h5", "stack.npy", "pages.tif"}
    assert "copy it" not in reasons.pop("broken.png")
    for name in reasons:
        assert "copy it to a folder that all workers share and name that path" in reasons[name]
    assert jobs.reconstruct(f"{remote}/scans.h5", tmp_path / "two", task=TASK, model=MODEL).failed == 1


def test_the_driver_holds_neither_images_nor_lines(folder, tmp_path, monkeypatch):
    """What an engine hands back is lines, and the ledger forgets them."""
    seen = []

    def watched(batches, solve, write):
        for kept in engine.in_this_process(batches, solve, write):
            seen.append(set(kept))
            yield kept

    jobs.reconstruct(folder, tmp_path / "out", task=TASK, model=MODEL, engine=watched, batch_images=2)
    assert seen and all(columns == {"line", "part"} for columns in seen)
