"""Runs that are killed, disturbed or split over processes, and what they say."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from cases import files_below
from tables import rows_of
from training_cases import interrupted_at, small_trainer, weights

import lpn_fast as lf
from lpn_fast import cli
from lpn_fast.training import Phase, state
from lpn_fast.training.laplacian import sample_laplace
from lpn_fast.training.log import RunLog, direction

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- going back, going on


def failing_once(at):
    """A sampler whose batch number `at` is NaN, once."""
    calls = {"count": 0}

    def sampler(count, generator):
        calls["count"] += 1
        x = sample_laplace(count, generator)
        return torch.full_like(x, math.nan) if calls["count"] == at else x

    return sampler


def test_nan_goes_back_to_the_last_good_state_with_half_the_rate_and_says_so(tmp_path):
    trainer = small_trainer(tmp_path, sampler=failing_once(at=33), phases=[Phase("l2", 60, 1e-2)])
    result = trainer.run()
    assert result["step"] == 60 and math.isfinite(result["loss"])
    assert trainer.rate_factor == 0.5 and trainer.rollbacks == 1
    text = (tmp_path / "train.log").read_text()
    assert "NaN or infinite by step 40: back to step 20, learning rates times 0.5" in text
    # from step 20 on it is the run that had half the rate there from the start
    other = small_trainer(phases=[Phase("l2", 60, 1e-2)])
    with pytest.raises(KeyboardInterrupt):
        interrupted_at(other, 20).run()
    other._one_step, other.rate_factor = type(other)._one_step.__get__(other), 0.5
    other.run()
    assert torch.equal(weights(trainer), weights(other))


def test_a_resumed_run_remembers_that_it_went_back(tmp_path):
    """The halved rate and the count of returns are part of the state."""
    options = {"phases": [Phase("l2", 60, 1e-2)]}
    whole = small_trainer(tmp_path / "whole", sampler=failing_once(at=33), **options)
    whole.run()
    with pytest.raises(KeyboardInterrupt):
        interrupted_at(small_trainer(tmp_path / "parts", sampler=failing_once(at=33), **options), 50).run()
    resumed = small_trainer(tmp_path / "parts", **options)
    resumed.run()
    assert (resumed.rate_factor, resumed.rollbacks) == (0.5, 1)
    assert torch.equal(weights(resumed), weights(whole))


def test_nan_that_comes_back_stops_the_run_and_leaves_the_good_state(tmp_path):
    def sampler(count, generator):
        x = sample_laplace(count, generator)
        return x * math.nan if trainer.step >= 25 else x

    trainer = small_trainer(tmp_path, sampler=sampler)
    with pytest.raises(FloatingPointError, match="lower the learning rate or set clip_norm"):
        trainer.run()
    assert torch.isfinite(weights(trainer)).all() and trainer.step == 20


def test_interrupted_runs_resume_with_averages_and_clipping(tmp_path):
    options = {"ema_decay": 0.9, "clip_norm": 0.05}
    whole = small_trainer(tmp_path / "whole", **options)
    whole.run()
    for step in (25, 45, 62):
        with pytest.raises(KeyboardInterrupt):
            interrupted_at(small_trainer(tmp_path / "parts", **options), step).run()
        assert state.read(tmp_path / "parts" / "resume.safetensors").progress["step"] == step // 20 * 20
    last = small_trainer(tmp_path / "parts", **options)
    last.run()
    assert torch.equal(weights(last), weights(whole))
    assert torch.equal(lf.load(tmp_path / "parts" / "model.safetensors").packed(), last.model.packed())
    with pytest.raises(ValueError, match="belongs to a run with another ema_decay; choose another folder"):
        small_trainer(tmp_path / "parts", ema_decay=0.8, clip_norm=0.05).run()


def test_rows_that_a_stop_undid_are_not_in_the_log_twice(tmp_path):
    arguments = {"validate": lambda model: {"figure": 1.0}, "validate_every": 8}
    with pytest.raises(KeyboardInterrupt):
        interrupted_at(small_trainer(tmp_path, **arguments), 39).run()
    first = small_trainer(tmp_path, **arguments).run()
    loss = rows_of(tmp_path / "log.csv")[-1]["loss"]
    again = small_trainer(tmp_path, **arguments).run()  # a finished run
    rows = rows_of(tmp_path / "log.csv")
    assert [int(row["step"]) for row in rows] == [8, 16, 24, 32, 40, 48, 56, 64, 70]
    assert again["loss"] == first["loss"] and rows[-1]["loss"] == loss and float(loss) > 0


def test_a_resume_file_with_a_flipped_bit_is_refused(tmp_path):
    small_trainer(tmp_path).run()
    path = tmp_path / "resume.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: its content is not what was written"):
        small_trainer(tmp_path).run()


@pytest.mark.slow
def test_three_kills_in_a_row_end_in_the_same_weights(photographs, tmp_path):
    """kill -9, three times, then the same command: bit for bit the weights of an uninterrupted run."""
    table = {
        "sigma": 0.1, "ema_decay": 0.98, "clip_norm": 0.1, "batch_size": 4, "threads": 1, "checkpoint_seconds": 0.0,
        "verify": False, "data": {"sources": [str(photographs)], "crop": 16},
        "model": {"hidden": 4, "strides": [1, 2]}, "schedule": {"loss": "matching", "steps": 400},
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(table))

    def command(out):
        start = [sys.executable, "-m", "lpn_fast.cli", "train"]
        return [*start, "--config", str(tmp_path / "run.json"), "--out", str(out)]

    resume, reached = tmp_path / "killed" / "resume.safetensors", 0
    for _ in range(3):
        running = subprocess.Popen(command(tmp_path / "killed"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.time() + 120
        while time.time() < deadline:
            with contextlib.suppress(ValueError):  # safetensors opens it twice, and it may be replaced in between
                if resume.exists() and state.read(resume).progress["step"] > reached:
                    break
            time.sleep(0.01)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        assert not (tmp_path / "killed" / "model.safetensors").exists()
        assert state.read(resume).progress["step"] > reached
        reached = state.read(resume).progress["step"]
    for out in ("killed", "whole"):
        subprocess.run(command(tmp_path / out), check=True, capture_output=True)
    a, b = (lf.load(tmp_path / out / "model.safetensors") for out in ("killed", "whole"))
    assert reached >= 60 and torch.equal(a.packed(), b.packed())


def test_a_full_disk_keeps_the_last_good_checkpoint_and_the_run(tmp_path):
    """From step 45 on: training ends, the state of 40 stays."""
    trainer = small_trainer(tmp_path, checkpoint_seconds=0.0)
    original = trainer._one_step
    with contextlib.ExitStack() as disk:

        def one_step():
            if trainer.step == 45:
                disk.enter_context(files_below(500))
            return original()

        trainer._one_step = one_step
        with pytest.raises(OSError, match="model.safetensors cannot be written"):
            trainer.run()
    assert trainer.step == 70 and state.read(tmp_path / "resume.safetensors").progress["step"] == 40
    assert not list(tmp_path.glob(".*.tmp"))
    assert (
        "could not write the resume file of step 60, the one of step 40 is kept" in (tmp_path / "train.log").read_text()
    )
    again = small_trainer(tmp_path)
    again.run()
    whole = small_trainer()
    whole.run()
    assert torch.equal(weights(again), weights(whole))


def test_the_command_says_in_one_line_that_the_disk_is_full(photographs, tmp_path, capsys):
    argv = ["train", "--data", str(photographs), "--out", str(tmp_path / "out"), "--sigma", "0.1", "--crop", "16"]
    argv += ["--steps", "2", "--batch-size", "2", "--hidden", "4", "--strides", "1", "2"]
    with files_below(500):
        code = cli.main(argv)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 1 and message.startswith("lpn-fast train: ") and "model.safetensors cannot be written" in message
    assert not list((tmp_path / "out").glob(".*.tmp"))


# ---- processes

WORKER = """
import sys, torch, lpn_fast as lf
from lpn_fast.training import Phase, Trainer
from lpn_fast.training.distributed import join, leave, launched_by_torchrun
torch.set_num_threads(1)
if launched_by_torchrun():
    join("cpu")
torch.manual_seed(0)
# float64 and a soft softplus: Adam turns the rounding of a vanishing gradient, as dead units have, into whole steps
model = lf.ConvLPN(1, hidden=4, strides=(1, 2), beta=5.0, sigma_conditional=True).double()
def sampler(count, generator):
    return torch.rand(count, 1, 8, 8, generator=generator)
phases = [Phase("l2", 30, 5e-3), Phase("matching", 30, 1e-3, gamma=2.0, gamma_unit="sigma")]
Trainer(model, sampler, phases, sigma=(0.05, 0.2), batch_size=8, ema_decay=0.9, clip_norm=0.5, out=sys.argv[1],
        validate=lambda m: {}, validate_every=10, progress=False).run()
leave()
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, str(tmp_path / "worker.py")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path / "one")], check=True, capture_output=True, env=environment)
    both = [*launch, str(tmp_path / "worker.py"), str(tmp_path / "two")]
    subprocess.run(both, check=True, capture_output=True, env=environment)
    curves = [[float(r["loss"]) for r in rows_of(tmp_path / o / "log.csv")] for o in ("one", "two")]
    assert len(curves[0]) == 6 and curves[0] == pytest.approx(curves[1], rel=1e-9)
    one, two = (lf.load(tmp_path / out / "model.safetensors").packed() for out in ("one", "two"))
    assert torch.allclose(one, two, rtol=1e-7, atol=1e-9)


# ---- what a run says


def test_directions_are_called_by_their_names():
    rng = np.random.default_rng(0)
    flat = (1 + 0.01 * rng.normal(size=30)).tolist()
    assert "does not move" in direction(flat)
    assert "falls" in direction([v - 0.01 * i for i, v in enumerate(flat)])
    assert "RISES" in direction([v + 0.01 * i for i, v in enumerate(flat)])
    assert "too few" in direction(flat[:3])


def test_the_early_answer_has_speed_time_left_and_direction(tmp_path, monkeypatch):
    monkeypatch.setattr("lpn_fast.training.trainer.EARLY_SECONDS", 0.0)
    small_trainer(tmp_path).run()
    line = (tmp_path / "train.log").read_text().splitlines()[0]
    assert "steps/s" in line and "min left" in line and "the loss" in line


def test_tensorboard_is_asked_for_by_name(tmp_path):
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="pip install tensorboard"):
            RunLog(tmp_path, tensorboard=True)
    else:
        small_trainer(tmp_path, tensorboard=True).run()
        assert list(tmp_path.glob("events*"))
