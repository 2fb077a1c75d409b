"""Files that are either absent or complete, even after a power cut.

A file is written under a temporary name in its own folder, forced to disk, and gets its name only then. Names of
temporary files begin with a dot and end in ".tmp", so that no reader takes one for a result.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

LONGEST_NAME = 255  # bytes, of a file in every common file system


@contextlib.contextmanager
def replacing(path: Path, alone: bool = False) -> Iterator[Path]:
    """A temporary name for the block to write to; the file takes the place of `path` when the block ends.

    If the block raises, `path` is what it was before, and nothing else is left.

    Parameters
    ----------
    path : Path
    alone : bool
        Whether no other process writes this file: then a name that is the same each time, so that what a kill left
        behind is overwritten by whoever writes the file again.

    Raises
    ------
    OSError
        The folder cannot be written to, or is full.
    """
    temporary = stage(path, b"", alone)
    with _removed_on_error(temporary):
        mode = temporary.stat().st_mode  # by the umask; safetensors gives its files another
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)


def write(path: Path, data: bytes, alone: bool = False) -> Path:
    """Write a file so that `path` is either absent, what it was before, or complete; see `replacing`."""
    temporary = stage(path, data, alone)
    with _removed_on_error(temporary):
        os.replace(temporary, path)
    return path


def stage(path: Path, data: bytes, alone: bool = True) -> Path:
    """Write what `path` shall hold to a temporary file, forced to disk; its name is for `os.replace`."""
    temporary = beside(path, ".", ".tmp" if alone else f".{os.getpid()}.tmp")
    with _removed_on_error(temporary):
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:  # not what somebody put there, a link to another file say
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    return temporary


def append(descriptor: int, data: bytes) -> None:
    """Append to an open file and force it to disk; a full disk leaves the file as it was.

    `os.write` may write a part only, which is what a disk with some room left does.

    Raises
    ------
    OSError
        Not everything could be written.
    """
    size = os.fstat(descriptor).st_size
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except BaseException:
        os.ftruncate(descriptor, size)
        raise


def beside(path: Path, before: str = "", after: str = "") -> Path:
    """Another name made from that of `path`, or, where that is too long for a file, from its digest.

    Examples
    --------
    >>> beside(Path("out/a.png"), ".", ".tmp").name
    '.a.png.tmp'
    >>> len(beside(Path(255 * "a"), ".", ".tmp").name)
    37
    """
    name, stored = f"{before}{path.name}{after}", os.fsencode(path.name)
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f"{before}{hashlib.sha256(stored).hexdigest()[:32]}{after}"
    return path.with_name(name)


@contextlib.contextmanager
def _removed_on_error(temporary: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
