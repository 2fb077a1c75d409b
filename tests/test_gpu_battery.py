"""The GPU battery without a GPU: every part's Python runs at its smallest size, and what dies loses no figures."""

import math
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import lpn_fast as lf
from bench.gpu import PARTS, numerics
from bench.gpu.warming import warm

ROOT = Path(__file__).parents[1]
NEEDS_TRITON = ("tune", "sanitizer", "convolutions")
GROUPS = sorted({p.group for p in PARTS})


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
    from bench.gpu.session import Session

    session = Session("kept", tmp_path, False, 10)
    session.add("op", "provider", 1.5, "ms", precision="fp16")
    assert "1.5" in session.file.read_text()
    session.check("holds", False, "why")
    assert session.failed == ["holds  why"]
    with pytest.raises(ValueError, match="columns must be among"):
        session.add("op", "provider", 1.0, "ms", colour="red")


@pytest.mark.parametrize("group, most", [("checks", 330), ("timings", 400)])
def test_checks_and_timings_fit_into_a_quarter_of_an_hour_with_the_build(group, most):
    assert sum(p.seconds for p in PARTS if p.group == group) <= most


def battery(*arguments, **variables):
    return run(["bash", "bench/gpu_battery.sh", *map(str, arguments)], **variables)


def test_the_battery_runs_what_it_is_asked_for_and_sums_up(tmp_path):
    done = battery(tmp_path, "--dry-run", "--only", "gates,ceilings")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = (tmp_path / "summary.txt").read_text().splitlines()
    assert [line.split()[0] for line in summary] == ["gates", "ceilings"]
    assert all(" ok, " in line for line in summary) and done.stdout.endswith("\n".join(summary) + "\n")


def test_the_battery_takes_a_group_and_packs_what_it_found(tmp_path):
    archive = tmp_path / "kept" / "all.tgz"
    done = battery(tmp_path / "out", "--dry-run", "--only", "training", "--pack", archive, LPN_FAST_BATTERY_SECONDS="5")
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(archive) as packed:
        assert "./summary.txt" in packed.getnames()
    assert "training" in (tmp_path / "out" / "summary.txt").read_text()


def test_the_truth_of_the_checks_is_that_of_a_trained_conditional_network():
    """In units of the noise, and with weights at zero, whose gradients the projection may keep back."""
    model = lf.pretrained("frame-gray").eval()
    x, v = torch.randn(2, 2, 1, 9, 8)
    sigma = torch.full((2,), 0.1)
    with lf.use_backend("torch"):
        f, hv, _, gradient = numerics._results(model, x, v, v, sigma)
    wanted = numerics._exact(model, x, v, sigma)
    assert all(numerics._relative(*pair) < 1e-5 for pair in zip((f, hv, gradient), wanted, strict=True))


class OnDevice(SimpleNamespace):
    """What `warm` and the tuner ask of a session, as if there were a device."""

    device = "cuda"
    seconds_left = 60.0

    def show(self, line):
        self.lines.append(line)


def test_compiling_ahead_names_what_failed_and_what_was_late():
    session = OnDevice(lines=[], seconds_left=120.0)
    warm(session, [(math.sqrt, (4.0,)), (math.sqrt, (-1.0,))])
    assert sorted(session.lines) == ["---- sqrt (-1.0,)  math domain error", "ok   sqrt (4.0,)  "]
    session = OnDevice(lines=[], seconds_left=0.5)
    warm(session, [(time.sleep, (100.0,))])
    assert session.lines == ["---- 1 of 1 were not ready in time"]


def test_the_tuner_survives_workers_that_fail():
    pytest.importorskip("triton", reason="Triton is not installed")
    from bench.gpu import tune

    key, side = next(tune.keys(90, True))
    wanted = [(key, side, config) for config in tune.candidates(key, True)]
    if torch.cuda.is_available():
        pytest.skip("there is a device, on which nothing fails")
    found = tune._errors(OnDevice(lines=[]), wanted)
    assert len(found) == len(wanted) and all(isinstance(error, str) and "CUDA" in error for error in found)


def test_the_battery_names_what_it_had_no_time_for(tmp_path):
    done = battery(tmp_path, "--dry-run", "--only", "ceilings,numerics", LPN_FAST_BATTERY_SECONDS="5")
    assert done.returncode == 0
    assert (tmp_path / "summary.txt").read_text().count("skipped: 5 s are over") == 2


def test_a_part_that_fails_fails_the_battery_and_no_other_part(tmp_path):
    """Python that cannot import torch: every part dies, and each is named."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('no torch here')")
    done = battery(tmp_path, "--dry-run", "--only", "gates,ceilings", PYTHONPATH=str(broken))
    assert done.returncode == 1
    assert (tmp_path / "summary.txt").read_text().count("ImportError: no torch here") == 2


def test_a_wrong_option_is_refused(tmp_path):
    assert battery("--fast").returncode == 2
