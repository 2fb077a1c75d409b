"""An installed lpn_fast as the README's reader finds it, for `make wheel` and the wheels' workflow.

python -I tests/installed_wheel.py

The compiled kernels are there and agree with torch; then every block of Python in the README runs, and every command,
in an empty folder with some pictures. Only the training is cut short. Needs no package of the tests.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import lpn_fast as lf

README = Path(__file__).resolve().parents[1] / "README.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHORT = ["--steps", "4", "--batch-size", "2", "--crop", "32"]  # the training runs for minutes as it stands


def python_blocks(text: str) -> list[str]:
    """The blocks of Python, in order; they share their names."""
    return [code for language, code in FENCE.findall(text) if language == "python"]


def commands(text: str) -> list[list[str]]:
    """The lines that call lpn-fast in blocks of no language, without comments; trainings are short."""
    lines = [line for language, code in FENCE.findall(text) if not language for line in code.splitlines()]
    split = [shlex.split(line, comments=True) for line in lines if line.startswith("lpn-fast ")]
    return [words + SHORT * (words[1] == "train") for words in split]


def photos(folder: Path) -> None:
    """Noisy pictures for the commands, which take a folder of that name."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        scene = np.kron(rng.uniform(0.1, 0.9, (8, 8)), np.ones((8, 8)))
        noisy = (scene + 0.05 * rng.standard_normal(scene.shape)).clip(0, 1)
        Image.fromarray((255 * noisy).astype(np.uint8)).save(folder / f"{number}.png")


def check_kernels() -> float:
    """How far the compiled kernels are from torch, relative; SystemExit where that is too far."""
    torch.manual_seed(0)
    model, z = lf.pretrained("frame-gray"), torch.rand(1, 1, 32, 32)
    results = {}
    for backend in ("cpu", "torch"):  # "cpu" raises unless the compiled module runs
        with torch.no_grad(), lf.use_backend(backend):
            results[backend] = model(z, 0.1)
    error = float((results["cpu"] - results["torch"]).norm() / results["torch"].norm())
    if not error < 1e-5:
        raise SystemExit(f"compiled kernels and torch differ by {error:.1e}, relative")
    return error


def follow(text: str) -> tuple[int, int]:
    """Run blocks and commands of a README in the current folder; how many there were of each."""
    blocks, lines = python_blocks(text), commands(text)
    names: dict = {"__name__": "readme"}
    for block in blocks:
        exec(block, names)
    photos(Path("photos"))
    for line in lines:
        print("$", shlex.join(line), flush=True)
        subprocess.run(line, check=True)
    return len(blocks), len(lines)


if __name__ == "__main__":
    error = check_kernels()
    text = README.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        ran = follow(text)
        os.chdir(README.parent)
    if min(ran) < 2:
        sys.exit("the README has too few blocks of Python or commands: its form has changed")
    print(f"lpn_fast {lf.__version__} in {lf.__path__[0]}: compiled kernels and torch differ by {error:.0e}, relative")
    print(f"README: {ran[0]} blocks of Python and {ran[1]} commands ran")
