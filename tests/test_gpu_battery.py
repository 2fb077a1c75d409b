"""The GPU battery without a GPU: every part's Python runs at its smallest size, and what dies loses no figures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu import PARTS

ROOT = Path(__file__).parents[1]
NEEDS_TRITON = ("tune", "sanitizer", "convolutions")


def run(command, **variables):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable} | variables
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("part", [p.name for p in PARTS])
def test_a_part_runs_dry_and_writes_no_figures(part, tmp_path):
    if part in NEEDS_TRITON:
        pytest.importorskip("triton", reason="Triton is not installed")
    done = run([sys.executable, "-m", f"bench.gpu.{part}", "--dry-run", "--out", str(tmp_path)])
    assert done.returncode in (0, 3), done.stdout[-3000:] + done.stderr[-3000:]
    assert not list(tmp_path.glob("*.csv"))


def test_without_a_device_a_part_says_so():
    done = run([sys.executable, "-m", "bench.gpu.ceilings"], CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 3 and "no CUDA device" in done.stdout


def test_a_measurement_is_kept_even_if_the_part_dies_next(tmp_path):
    from bench.gpu.part import Session

    session = Session("kept", tmp_path, False, 10)
    session.add("op", "provider", 1.5, "ms", precision="fp16")
    assert "1.5" in session.file.read_text()
    session.check("holds", False, "why")
    assert session.failed == ["holds  why"]
    with pytest.raises(ValueError, match="columns must be among"):
        session.add("op", "provider", 1.0, "ms", colour="red")


def test_the_parts_fit_into_nine_minutes():
    assert sum(p.seconds for p in PARTS) <= 480
