"""The index of a job: what it finds, whatever names are made of, and that memory does not hold it."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lpn_fast.io.containers import IMAGES
from lpn_fast.io.finding import find
from lpn_fast.io.sources import Source, find_sources
from lpn_fast.jobs import inputs
from lpn_fast.jobs.index import CHUNK, Index
from lpn_fast.jobs.places import Entry
from lpn_fast.pipeline.manifest import ItemResult, lines_of, manifests, read_results, results_in


def index_of(images, recursive=False, out="elsewhere"):
    return inputs.find(images, recursive, out, IMAGES).index


def described(sources):
    return [(source.item, str(source), source.place, source.member, source.position) for source in sources]


def test_it_finds_what_a_job_of_one_machine_finds(tmp_path):
    for folder in ("a", "a/sub", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(b"any")
        np.save(tmp_path / folder / "stack.npy", np.zeros((4, 8, 8), np.float32))
    os.symlink(tmp_path / "a/1.png", tmp_path / "b/link.png")
    (tmp_path / "a/readme.txt").write_text("pictures")
    for images, recursive in (
        ([tmp_path / "a"], False),
        ([tmp_path / "a", tmp_path / "b"], True),  # of one name: told apart by their folders
        ([tmp_path / "b/1.png", tmp_path / "b", f"{tmp_path}/b/../b/*.png"], False),  # some of them twice
    ):
        sources, broken, found = find_sources(images, recursive)
        again = inputs.find(images, recursive, "elsewhere", IMAGES)
        assert described(again.index.sources()) == described(sources) and len(sources) >= 4
        assert (again.passed_over, again.broken) == (str(found), broken) == (str(found), [])


def test_names_need_not_be_unicode(tmp_path):
    names = [b"\xff\xe9.png", "Gr\u00f6\u00dfe \u732b.png".encode(), b"plain.png"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(b"any")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / os.fsdecode(names[0])).write_bytes(b"any")
    index = index_of([tmp_path, tmp_path / "two"])  # told apart below a common folder
    expected = find([tmp_path, tmp_path / "two"]).places
    assert {source.path: source.place for source in index.sources()} == expected and len(expected) == 4
    items = [source.item for source in index.sources()]
    index.record(ItemResult(item, "done", item, "", {}, "0") for item in items[:2])
    assert list(index.recorded(list(index.sources()))) == items[:2]


def test_images_that_are_done_are_passed_over_whatever_their_number():
    index, count = Index(), 2 * CHUNK + 1
    for number in range(count):
        index.add_remote(f"memory://in/{number:05d}.png", Entry(f"{number:05d}.png", 10, 1.5))
    index.add_remote_images()
    assert index.shared_name() is None
    assert [len(chunk) for chunk in index.chunks()] == [CHUNK, CHUNK, 1]
    for chunk in index.chunks():
        index.mark_done(source.item for source in chunk if not source.item.endswith("7.png"))
    left = list(index.left())
    assert len(left) == index.count_left() == count // 10 and {(s.size, s.modified) for s in left} == {(10, 1.5)}
    assert index.taken_at("memory://in") == "memory://in/00000.png" and index.taken_at("memory://out") is None


def test_the_last_word_counts_as_in_the_manifests_of_one_machine(tmp_path):
    """Within a manifest the last line; of several manifests, the one that says done."""

    def line(item, status, source="s"):
        return ItemResult(item, status, source, "", {"sigma": 1}, "d")

    first = [line("a", "done"), line("b", "failed"), line("c", "done", "1")]
    second = [line("a", "failed"), line("b", "failed"), line("b", "done"), line("c", "done", "2"), line("d", "failed")]
    third = [line("d", "done"), line("d", "failed", "again")]
    for number, results in enumerate((first, second, third)):
        name = tmp_path / f"manifest{f'.{number}' if number else ''}.jsonl"
        name.write_text("".join(result.to_line() for result in results))
    index = Index()
    for item in "abcd":
        index.add_file(Path(item), Path(item))
    for number, path, place in index.files():
        index.add_image(number, Source(path, place))
    for path in manifests(tmp_path):
        index.record(results_in(path, lines_of(path), {}))
    expected = read_results(tmp_path)
    assert index.recorded(list(index.sources())) == expected
    assert {item: (r.status, r.source) for item, r in expected.items()} == {
        "a": ("done", "s"),
        "b": ("done", "s"),
        "c": ("done", "1"),
        "d": ("failed", "again"),
    }


def test_two_images_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"any")
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (extra 'remote')")
    fsspec.filesystem("memory").pipe("/elsewhere/a.png", b"any")
    with pytest.raises(ValueError, match=r"got several a\.png"):
        index_of([tmp_path, "memory://elsewhere"])


def test_memory_holds_no_names(tmp_path):
    """Fewer objects than names. Bytes would count a table of Python's own that may grow meanwhile."""
    for number in range(3000):
        (tmp_path / f"{number:05d}.png").touch()
    index_of(tmp_path)  # whatever is imported and cached at first
    tracemalloc.start()
    try:
        index = index_of(tmp_path)
        batches = sum(1 for _ in inputs.batches(index.left()))
        held = sum(statistic.count for statistic in tracemalloc.take_snapshot().statistics("filename"))
    finally:
        tracemalloc.stop()
    assert batches == 47 and held < 1000
