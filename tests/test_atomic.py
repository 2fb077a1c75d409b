"""Files written by lpn_fast.atomic are absent, what they were, or complete, and have the mode that the umask gives."""

import os
import stat

import pytest

import lpn_fast as lf
from lpn_fast import atomic


@pytest.mark.parametrize("alone", [False, True])
def test_what_fails_leaves_the_file_as_it_was_and_nothing_else(tmp_path, alone):
    path = atomic.write(tmp_path / "a", b"before")
    with pytest.raises(RuntimeError), atomic.replacing(path, alone) as temporary:
        temporary.write_bytes(b"half")
        assert path.read_bytes() == b"before" and temporary.name.startswith(".") and temporary.suffix == ".tmp"
        raise RuntimeError
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_behind_is_overwritten(tmp_path):
    atomic.stage(tmp_path / "a", b"of a killed process")
    assert atomic.write(tmp_path / "a", b"new", alone=True).read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("alone", [False, True])
def test_a_link_at_the_temporary_name_is_not_followed(tmp_path, alone):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    name = ".a.tmp" if alone else f".a.{os.getpid()}.tmp"
    (tmp_path / name).symlink_to(victim)
    assert atomic.write(tmp_path / "a", b"new", alone).read_bytes() == b"new"
    assert victim.read_bytes() == b"precious" and not (tmp_path / "a").is_symlink()


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: steps.append(os.fstat(descriptor).st_size))
    monkeypatch.setattr(os, "replace", lambda source, target: steps.append(target.name))
    atomic.write(tmp_path / "a", b"four")
    assert steps == [4, "a"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_checkpoints_have_the_mode_of_any_new_file(tmp_path, umask):
    """safetensors creates files that only their owner can read."""
    before = os.umask(umask)
    try:
        path = lf.save(lf.MLPLPN(1, hidden=4, layers=1), tmp_path / "m.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
