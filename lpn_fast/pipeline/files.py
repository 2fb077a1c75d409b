"""Files that are either absent or complete, even after a power cut.

A result is written under a temporary name, forced to disk, and gets its name only then. Names of temporary files
begin with a dot and end in ".tmp", so that no reader takes one for a result; what a kill left behind is
overwritten by whoever writes the same result again.
"""

import os
from pathlib import Path


def temporary_name(path: Path) -> Path:
    """The name under which `path` is written first."""
    return path.with_name(f".{path.name}.tmp")


def write_temporary(path: Path, data: bytes) -> Path:
    """Write what `path` shall hold under its temporary name and force it to disk.

    Returns
    -------
    Path
        The temporary file, for `os.replace`.

    Raises
    ------
    OSError
        The folder cannot be written to, or is full; nothing is left behind then.
    """
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_whole(path: Path, data: bytes) -> Path:
    """Write a file so that `path` is either absent, what it was before, or complete.

    Raises
    ------
    OSError
        As `write_temporary`.
    """
    os.replace(write_temporary(path, data), path)
    return path


def append_whole(descriptor: int, data: bytes) -> None:
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
