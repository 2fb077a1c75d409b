"""`python -m bench.files_large`: the peak of denoising a large picture, 200 million pixels if not told otherwise.

The file is made row by row, so that no more of it than a row is in memory. A job of its own process denoises it under a
limit on its data (RLIMIT_DATA), which ends it if it asks for more; printed are the most that it had resident, and what
it had before the job: Python, torch and the package.
"""

import argparse
import contextlib
import io
import resource
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np

from lpn_fast.io.png import SIGNATURE, chunk

GRAY, COLOUR = 0, 2  # PNG's numbers for them


def make(path: Path, height: int, width: int, channels: int) -> None:
    """Smooth waves and noise, 8 bits."""
    rng, deflate = np.random.default_rng(0), zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    across = np.repeat(40 * np.sin(np.arange(width) / 90), channels)
    with open(path, "wb") as file:
        kind = COLOUR if channels == 3 else GRAY
        file.write(SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)))
        for row in range(height):
            values = 128 + across + 40 * np.sin(row / 70) + 12 * rng.standard_normal(width * channels, np.float32)
            if data := deflate.compress(b"\0" + values.astype(np.uint8).tobytes()):
                file.write(chunk(b"IDAT", data))
        file.write(chunk(b"IDAT", deflate.flush()) + chunk(b"IEND", b""))


def denoise(folder: Path, limit: int) -> None:
    """In the process that is measured."""
    import torch

    from lpn_fast import cli

    torch.set_num_threads(1)
    start = peak()
    resource.setrlimit(resource.RLIMIT_DATA, (limit << 20, limit << 20))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        words = ["denoise", str(folder / "large.png"), "-o", str(folder / "out"), "--model", "frame-gray"]
        code = cli.main([*words, "--sigma", "0.05", "--threads", "1"])
    if code:
        print(said.getvalue())
    print(f"exit code {code}, at most {peak()} MiB resident, {start} MiB of them before the job")
    sys.exit(code)


def peak() -> int:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main(arguments: list[str] | None = None) -> int:
    """Print the peak; the exit code of the job."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.files_large", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=2, default=(10_000, 20_000), metavar=("H", "W"))
    parser.add_argument("--channels", type=int, default=1, choices=(1, 3))
    parser.add_argument("--limit", type=int, default=3072, metavar="MIB", help="default: %(default)s")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.inside is not None:
        denoise(args.inside, args.limit)
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "large.png", *args.size, args.channels)
        print(f"{args.size[0]} x {args.size[1]} pixels, {args.channels} channels", flush=True)
        command = [sys.executable, "-m", "bench.files_large", "--inside", folder, "--limit", str(args.limit)]
        return subprocess.run(command, cwd=Path(__file__).resolve().parents[1]).returncode


if __name__ == "__main__":
    sys.exit(main())
