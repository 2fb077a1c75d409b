"""Files that are either absent or complete, even after a power cut.

A file is written under a temporary name in its own folder, forced to disk, and gets its name only then. Names of
temporary files begin with a dot and end in ".tmp", so that no reader takes one for a result.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


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
    with _complete(path, alone) as temporary:
        yield temporary
    try:
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write(path: Path, data: bytes, alone: bool = False) -> Path:
    """Write a file so that `path` is either absent, what it was before, or complete; see `replacing`."""
    with replacing(path, alone) as temporary:
        temporary.write_bytes(data)
    return path


def stage(path: Path, data: bytes) -> Path:
    """Write what `path` shall hold, as `replacing` does for a process that is alone; the name is for `os.replace`."""
    with _complete(path, alone=True) as temporary:
        temporary.write_bytes(data)
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


@contextlib.contextmanager
def _complete(path: Path, alone: bool) -> Iterator[Path]:
    """The temporary file, forced to disk when the block ends; removed if it raises."""
    temporary = path.with_name(f".{path.name}.tmp" if alone else f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # left by a kill, or a link that someone put there: never written through
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = os.fstat(descriptor).st_mode  # by the umask; safetensors gives its files another
        os.close(descriptor)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
