"""`python -m bench.files`: files of real life, made by a script, and what is read from each of them.

Every file is read as jobs read it and as training reads it, written back, and read again. Its values are compared with
those that the script put in, in [0, 1]; a file that must be refused is refused for the reason given. Then all of them,
in a folder, go through the commands (files_commands.py). Exit code 1 if one is not as it should be. tests/test_files.py
runs the same table.

    python -m bench.files --fuzz 30000      damaged copies of them: read or refused, no crash, no hang, bounded memory
"""

import argparse
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from lpn_fast.data import find_items
from lpn_fast.data.readers import Reader
from lpn_fast.io import UnreadableImage, containers, read_image, write_image
from lpn_fast.io.containers import Images
from lpn_fast.io.sources import Source, find_sources

from .files_commands import TASKS, through_commands
from .real_files import CASES, Case

MOST_MEMBERS, LONGEST_SECONDS = 8, 20  # read of a damaged container; that a damaged file may take
LINE = "{:<16} {:<36}" + " {:>9}" * 3 + " {:>11}" * 4


def read_by_job(path: Path, case: Case) -> tuple[np.ndarray, str]:
    """(images (N, C, H, W), their notes) as jobs read them; ValueError or OSError if one is refused."""
    sources, broken, _ = find_sources(path, content=Images(any_type=case.intensities is not None))
    if broken:
        raise broken[0]
    images = [source.read(case.intensities)[0] for source in sources]
    return np.stack([image.pixels.numpy() for image in images]), "; ".join(images[0].notes)


def read_by_training(path: Path, case: Case) -> np.ndarray:
    """(N, C, H, W) as training reads them."""
    channels = 1 if isinstance(case.expected, str) else case.expected.shape[1]
    read = Reader(channels, case.intensities, case.intensities)
    samples = [item.read(read) for item in find_items([path])]
    scales = [1 if s.dtype == np.float32 else read.full_scale or np.iinfo(s.dtype).max for s in samples]
    return np.stack([sample / np.float32(scale) for sample, scale in zip(samples, scales, strict=True)])


def write_again(path: Path, case: Case) -> np.ndarray:
    """(N, C, H, W) after reading, writing and reading once more."""
    out = path.parent / "again" / path.name
    out.parent.mkdir(exist_ok=True)
    if not containers.is_container(path):
        image = read_image(path, case.intensities)
        write_image(out, image.pixels, image.encoding)
    else:
        parts = []
        for number, member in enumerate(containers.members(path, Images(any_type=True))[0]):
            image, part = Source(path, out, member).read(case.intensities)[0], out.with_name(f"{number}.npy")
            parts.append((member, write_image(part, image.pixels, image.encoding)))
        containers.pack(path, parts, out)
    return read_by_job(out, case)[0]


def outcome(function: Callable, *arguments) -> np.ndarray | str:
    """What it gives, or why not."""
    try:
        return function(*arguments)
    except (ValueError, OSError) as error:
        return str(error)


def judged(case: Case, seen: np.ndarray | str, lost: float = 0.0) -> tuple[bool, str]:
    """(whether that is right, what to show of it)."""
    if isinstance(case.expected, str):
        refused = isinstance(seen, str) and re.search(case.expected, seen) is not None
        return refused, "refused" if refused else "NOT SO"
    if isinstance(seen, str) or seen.shape != case.expected.shape:
        return False, "REFUSED" if isinstance(seen, str) else "SHAPE"
    error = float(np.abs(seen - case.expected).max())
    return error <= case.rounding + lost, f"{error:.1e}"


def tried(case: Case, folder: Path) -> tuple[bool, list[str], list]:
    """(whether all is right, what to show, what was seen) of a file that is made, read and written in a folder."""
    path = case.write(folder)
    read = outcome(read_by_job, path, case)
    notes = "" if isinstance(read, str) else read[1]
    seen = [read if isinstance(read, str) else read[0], outcome(read_by_training, path, case)]
    if not isinstance(case.expected, str):
        seen.append(outcome(write_again, path, case))
    results = [judged(case, one, lost) for one, lost in zip(seen, (0, 0, case.lost), strict=False)]
    right = all(holds for holds, _ in results) and re.search(case.notes, notes) is not None
    return right, [text for _, text in results], [*seen, notes]


def mutant(good: bytes, number: int) -> bytes:
    """A damaged copy: bytes, or numbers of four, replaced by any or by extremes, most of them near the start; cut."""
    rng, data = np.random.default_rng(number), bytearray(good)
    for _ in range(rng.integers(1, 5)):
        end = len(data) if rng.random() < 0.4 else min(len(data), 600)
        place, width = int(rng.integers(end)), int(rng.choice([1, 1, 1, 4]))
        value = (
            bytes(rng.integers(0, 256, width, np.uint8)) if rng.random() < 0.7 else rng.choice([b"\0", b"\xff"]) * width
        )
        data[place : place + width] = value
    return bytes(data[: int(len(data) * rng.choice([1.0] * 9 + [0.9, 0.5, 0.1]))])


def read_mutants(numbers: Iterable[int], folder: Path) -> Iterator[tuple[int, Case, str | None]]:
    """(number, what it was made of, why it is refused) of damaged files; raises what is no refusal."""
    cases = [case for case in CASES if not isinstance(case.expected, str)]
    good = {case.name: case.write(folder).read_bytes() for case in cases}
    for number in numbers:
        case = cases[number % len(cases)]
        path = folder / case.name
        path.write_bytes(mutant(good[case.name], number))
        sources, broken, _ = find_sources(path, content=Images(any_type=case.intensities is not None))
        reasons = [error.reason for error in broken]
        for source in sources[:MOST_MEMBERS]:
            try:
                image, _ = source.read(case.intensities)
                if not (image.pixels.isfinite().all() and image.pixels.ndim == 3):
                    raise AssertionError(f"number {number} of {case.name} gives {image}")
            except UnreadableImage as error:
                reasons.append(error.reason)
        yield number, case, reasons[0] if reasons else None


def fuzz(count: int, first: int = 0) -> int:
    """Read damaged files in a process that is started anew after a crash or a hang; how many of those there were."""
    if first:  # in that process
        refused = 0
        with tempfile.TemporaryDirectory() as folder:
            for number, _, reason in read_mutants(range(first, first + count), Path(folder)):
                refused += reason is not None
                signal.setitimer(signal.ITIMER_PROF, LONGEST_SECONDS)  # of processor time: others may have the cores
                signal.alarm(10 * LONGEST_SECONDS)  # what waits uses none
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
                print(number, refused, peak, flush=True)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        return 0
    ended, refused, peak, number = 0, 0, 0, 0
    while number < count:
        command = [sys.executable, "-m", "bench.files", "--fuzz", str(count - number), "--first", str(number + 1)]
        before = refused
        with tempfile.TemporaryFile() as log:  # a pipe would fill up with the warnings of decoders
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
            for line in child.stdout:
                number, refused, mib = (int(word) for word in line.split())
                refused, peak = before + refused, max(peak, mib)
            if child.wait():
                number, ended = number + 1, ended + 1
                log.seek(max(0, log.tell() - 300))
                print(f"number {number} ended its process: {child.returncode}, {log.read().decode()}", flush=True)
    read = count - refused - ended
    print(f"{count} damaged files: {refused} refused, {read} read, {ended} crashes or hangs, at most {peak} MiB")
    return 1 if ended else 0


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 if a file is not read or refused as it should be."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.files", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fuzz", type=int, metavar="COUNT", help="instead, read so many damaged files")
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.fuzz:
        return fuzz(args.fuzz, args.first)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        verdicts = through_commands(Path(folder), lambda path, case: read_by_job(path, case)[0])
    print(LINE.format("file", "what", "job", "training", "rewritten", "train", *TASKS))
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            right, shown, seen = tried(case, Path(folder))
        by_command = [of_files[case.name] for of_files in verdicts.values()]
        right &= all(holds for holds, _ in by_command)
        wrong += not right
        shown += [""] * (3 - len(shown)) + [text for _, text in by_command]
        line = LINE.format(case.name, case.what, *shown)
        print(line if right else f"{line}   WRONG: {' '.join(str(seen).split())[:300]}")
    print(f"{len(CASES)} files, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
