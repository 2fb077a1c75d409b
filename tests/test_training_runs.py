"""Runs that are killed, disturbed, split over processes or described by a file; and what their checkpoints hold."""

import csv
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import lpn_fast as lf
from lpn_fast import cli
from lpn_fast.training import Phase, ProximalMatchingLoss, Trainer, gate, published_phases, state
from lpn_fast.training.average import WeightAverage
from lpn_fast.training.config import from_dict, merge, read_config
from lpn_fast.training.laplacian import sample_laplace
from lpn_fast.training.log import RunLog, direction


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        smooth = np.cumsum(np.cumsum(rng.normal(size=(40, 44)), 0), 1)
        smooth = (smooth - smooth.min()) / np.ptp(smooth) * 255
        Image.fromarray(smooth.astype(np.uint8)).save(folder / f"{i}.png")
    return folder


PHASES = [Phase("l1", 40, 1e-2), Phase("matching", 30, 1e-3, 1e-4, gamma=0.3)]


def small_trainer(out=None, phases=PHASES, sampler=sample_laplace, **arguments):
    torch.manual_seed(3)
    model = lf.MLPLPN(1, hidden=8, layers=1)
    return Trainer(model, sampler, phases, sigma=1.0, batch_size=64, out=out, progress=False, **arguments)


def weights(trainer):
    return torch.cat([p.detach().reshape(-1) for p in trainer.model.parameters()])


def interrupted_at(trainer, step):
    """The trainer, which will be interrupted before `step`."""
    original = trainer._one_step

    def one_step():
        if trainer.step == step:
            raise KeyboardInterrupt
        return original()

    trainer._one_step = one_step
    return trainer


# ---- averaging, clipping, rates


def test_the_average_is_the_recursion_and_stays_non_negative():
    trainer = small_trainer(ema_decay=0.9)
    expected, update = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}, trainer.average.update

    def both(step):
        update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, p in trainer.model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * p.detach()

    trainer.average.update = both
    trainer.run()
    for name, p in trainer.model.named_parameters():  # the run ends with the average installed
        assert torch.allclose(p, expected[name], atol=1e-6)
    assert all((p >= 0).all() for n, p in trainer.model.named_parameters() if n.endswith(("core", "head")))


def test_validation_sees_the_average_and_training_does_not():
    seen = []
    trainer = small_trainer(ema_decay=0.99, validate=lambda m: seen.append(lf_vector(m)) or {}, validate_every=20)
    plain = small_trainer()
    interrupted_at(trainer, 50), interrupted_at(plain, 50)
    for t in (trainer, plain):
        with pytest.raises(KeyboardInterrupt):
            t.run()
    assert torch.equal(weights(trainer), weights(plain)) and not torch.equal(seen[0], weights(trainer))


def lf_vector(model):
    return model.packed().detach().clone()


def test_averaged_ridge_networks_keep_their_further_constraints():
    torch.manual_seed(0)
    model = lf.RidgeLPN(1, pairs=4, kernel=3)
    Trainer(
        model, lambda n, g: torch.rand(n, 1, 12, 12, generator=g), [Phase("l2", 30, 3e-2)], sigma=0.3, batch_size=4,
        ema_decay=0.8, progress=False,
    ).run()  # fmt: skip
    skip = model.stages[0].skip
    assert torch.equal(skip[::2], -skip[1::2]) and (model.stages[0].bias <= 0).all()
    assert lf.asymptotic_gain(model) < 1.01


@pytest.mark.parametrize("family", ["ridge", "mlp"])
def test_a_step_ends_where_adam_and_project_end(family):
    """The optimizer clamps within its step; what else a family demands is still called after it."""

    def build():
        torch.manual_seed(0)
        return lf.RidgeLPN(1, pairs=4, kernel=3) if family == "ridge" else lf.MLPLPN(1, hidden=8, layers=1)

    def draw(n, g):
        return torch.rand(n, 1, 12, 12, generator=g) if family == "ridge" else sample_laplace(n, g)

    ours, theirs = build(), build()
    trainer = Trainer(ours, draw, [Phase("l2", 8, 5e-2)], sigma=0.3, batch_size=4, progress=False)
    reference = Trainer(theirs, draw, [Phase("l2", 8, 5e-2)], sigma=0.3, batch_size=4, progress=False)
    reference.optimizer = torch.optim.Adam(theirs.parameters(), lr=1.0)
    reference._project = lambda everything=False: theirs.project_()
    trainer.run(), reference.run()
    assert torch.allclose(ours.packed(), theirs.packed(), rtol=1e-5, atol=1e-6)


def test_clipping_bounds_the_gradient_that_adam_sees():
    trainer = small_trainer(phases=[Phase("l2", 3, 1e-3)], clip_norm=1e-3)
    norms, step = [], trainer.optimizer.step

    def recorded():
        norms.append(torch.cat([p.grad.reshape(-1) for p in trainer.model.parameters()]).norm().item())
        return step()

    trainer.optimizer.step = recorded
    trainer.run()
    assert norms == pytest.approx([1e-3] * 3, rel=1e-3)


def test_rates_warm_up_and_fall():
    phase = Phase("l2", 100, 1.0, 0.1, warmup=9)
    assert [phase.rate(k) for k in (0, 4)] == pytest.approx([0.1, 0.5], rel=0.01)
    assert phase.rate(9) == pytest.approx(0.1 + 0.9 * (1 + math.cos(0.09 * math.pi)) / 2)
    assert phase.rate(99) == pytest.approx(0.1, rel=0.02)


def test_every_sample_has_its_gamma():
    pred, target = torch.randn(3, 5, dtype=torch.float64), torch.zeros(3, 5, dtype=torch.float64)
    gamma = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    alone = [ProximalMatchingLoss(g.item())(p[None], t[None]) for g, p, t in zip(gamma, pred, target, strict=True)]
    assert torch.allclose(ProximalMatchingLoss(gamma)(pred, target), torch.stack(alone).mean())
    sigma = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    phase = Phase("matching", 1, 1e-3, gamma=5.0, gamma_unit="sigma")
    assert torch.allclose(phase.criterion(sigma)(pred, target), ProximalMatchingLoss(5 * sigma)(pred, target))
    with pytest.raises(ValueError, match="one for each of 3 samples, got 2"):
        ProximalMatchingLoss(gamma[:2])(pred, target)
    with pytest.raises(ValueError, match="single noise level"):
        small_trainer(phases=[phase])


def test_published_schedule_in_units_of_the_root_of_n_and_for_fine_tuning():
    phases = published_phases(100, 400, pretrain=None, gamma_min=0.2, halvings=1, decay=0.5, warmup=10)
    assert [p.loss for p in phases] == ["matching"] * 2 and [p.gamma for p in phases] == [4.0, 2.0]
    assert [p.warmup for p in phases] == [10, 0] and phases[0].final_learning_rate == 0.5e-4
    assert sum(p.steps for p in phases) == 400


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
    with pytest.raises(ValueError, match="belongs to a run with another"):
        small_trainer(tmp_path / "parts", ema_decay=0.8, clip_norm=0.05).run()


def test_rows_that_a_stop_undid_are_not_in_the_log_twice(tmp_path):
    arguments = {"validate": lambda model: {"figure": 1.0}, "validate_every": 8}
    with pytest.raises(KeyboardInterrupt):
        interrupted_at(small_trainer(tmp_path, **arguments), 39).run()
    small_trainer(tmp_path, **arguments).run()
    small_trainer(tmp_path, **arguments).run()  # a finished run
    rows = list(csv.DictReader(open(tmp_path / "log.csv")))
    assert [int(row["step"]) for row in rows] == [8, 16, 24, 32, 40, 48, 56, 64, 70]


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
        return [
            sys.executable,
            "-m",
            "lpn_fast.cli",
            "train",
            "--config",
            str(tmp_path / "run.json"),
            "--out",
            str(out),
        ]

    resume, reached = tmp_path / "killed" / "resume.safetensors", 0
    for _ in range(3):
        running = subprocess.Popen(command(tmp_path / "killed"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.time() + 60
        while time.time() < deadline:
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
    """Files of this process may not grow beyond 500 bytes from step 45 on: training ends, the state of 40 stays."""
    trainer = small_trainer(tmp_path, checkpoint_seconds=0.0)
    original, limits = trainer._one_step, resource.getrlimit(resource.RLIMIT_FSIZE)

    def one_step():
        if trainer.step == 45:
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
        return original()

    trainer._one_step = one_step
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match="model.safetensors could not be written"):
            trainer.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
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
    curves = [[float(r["loss"]) for r in csv.DictReader(open(tmp_path / o / "log.csv"))] for o in ("one", "two")]
    assert len(curves[0]) == 6 and curves[0] == pytest.approx(curves[1], rel=1e-9)
    one, two = (lf.load(tmp_path / out / "model.safetensors").packed() for out in ("one", "two"))
    assert torch.allclose(one, two, rtol=1e-7, atol=1e-9)


# ---- precision


def test_the_gate_lets_bfloat16_through_where_it_computes_the_same_step(tmp_path):
    torch.manual_seed(0)
    model = lf.ConvLPN(1, hidden=8, strides=(1, 2))
    used = []
    trainer = Trainer(
        model, lambda n, g: torch.rand(n, 1, 16, 16, generator=g), [Phase("l2", 4, 1e-3)], sigma=0.1, batch_size=4,
        precision="bf16", out=tmp_path, progress=False, validate=lambda m: used.append(m.precision) or {},
    )  # fmt: skip
    model.register_forward_hook(lambda m, *_: used.append(m.precision))
    trainer.run()
    assert "bf16 is used" in (tmp_path / "train.log").read_text()
    assert used.count("bf16") == 5 and used[-1] == "fp32"  # the gate's own and four steps; validation is exact


def test_the_gate_refuses_what_is_too_coarse_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "PROX_LIMIT", 1e-7)
    trainer = small_trainer(tmp_path, precision="bf16")
    plain = small_trainer()
    trainer.run(), plain.run()
    assert torch.equal(weights(trainer), weights(plain))
    assert "bf16 is NOT used, fp32 is" in (tmp_path / "train.log").read_text()
    with pytest.raises(ValueError, match="precision must be one of"):
        small_trainer(precision="half")


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


# ---- configurations


def test_a_configuration_file_trains_verifies_and_is_recorded(photographs, tmp_path, capsys):
    (tmp_path / "run.toml").write_text(f"""
        out = "{tmp_path / "out"}"
        sigma = [0.05, 0.2]
        batch_size = 2
        ema_decay = 0.9
        [data]
        sources = ["{photographs}"]
        validate = ["{photographs}"]
        validate_side = 32
        crop = 16
        [model]
        hidden = 4
        strides = [1, 2]
        [schedule]
        steps = 6
    """)
    assert cli.main(["train", "--config", str(tmp_path / "run.toml"), "--steps", "4", "--threads", "1"]) == 0
    model = lf.load(tmp_path / "out" / "model.safetensors")
    assert model.card["config"]["schedule"]["steps"] == 4 and model.card["config"]["data"]["crop"] == 16
    assert model.card["verified"] == "every property" and "ssim@0.2" in model.card["result"]
    assert from_dict(model.card["config"]).to_dict() == model.card["config"]
    assert "steps" in (tmp_path / "out" / "card.md").read_text()


@pytest.mark.parametrize(
    "table, message",
    [
        ({"sigmaa": 0.1}, r"unknown key 'sigmaa'; did you mean 'sigma'\?"),
        ({"schedule": {"lerning_rate": 1}}, r"did you mean 'schedule.learning_rate'\?"),
        ({"learning_rate": 1e-3}, r"unknown key 'learning_rate'; did you mean 'schedule.learning_rate'\?"),
        ({"batch_size": "many"}, "'batch_size' must be int, got 'many'"),
        ({"batch_size": True}, "'batch_size' must be int, got True"),
        ({"data": {"sources": "photos"}}, "'data.sources' must be"),
        ({"model": 3}, "'model' must be a table, got 3"),
        ({"model": {"family": "multi-scale"}}, r"did you mean 'multiscale'\?"),
        ({"schedule": {"loss": "l3"}}, "schedule.loss must be one of"),
        ({"data": {"sources": ["x"], "synthetic": "dead-leaves"}}, "either sources"),
        ({"data": {"synthetic": "dead leaves"}}, r"did you mean 'dead-leaves'\?"),
    ],
)
def test_wrong_configurations_are_refused_with_the_nearest_name(table, message):
    with pytest.raises(ValueError, match=message):
        from_dict(merge({"out": "x", "sigma": 0.1, "data": {"sources": ["x"]}}, table))


def test_configuration_files_are_toml_or_json(tmp_path):
    (tmp_path / "a.toml").write_text("sigma = 0.1\n[data]\ncrop = 8\n")
    (tmp_path / "a.json").write_text('{"sigma": 0.1, "data": {"crop": 8}}')
    assert read_config(tmp_path / "a.toml") == read_config(tmp_path / "a.json") == {"sigma": 0.1, "data": {"crop": 8}}
    (tmp_path / "b.toml").write_text("sigma = ")
    with pytest.raises(ValueError, match="b.toml is not readable as .toml"):
        read_config(tmp_path / "b.toml")
    with pytest.raises(ValueError, match="'out' must be given"):
        from_dict({"sigma": 0.1, "data": {"sources": ["x"]}})


def test_fine_tuning_goes_on_from_a_model_and_keeps_its_family(photographs, tmp_path):
    torch.manual_seed(0)
    first = lf.save(lf.RidgeLPN(1, pairs=4, kernel=3), tmp_path / "first.safetensors")
    argv = [
        "train", "--data", str(photographs), "--out", str(tmp_path / "tuned"), "--sigma", "0.1", "--start", str(first),
        "--loss", "matching", "--pretrain", "none", "--steps", "4", "--crop", "16", "--batch-size", "2",
        "--precision", "fp32", "--ema-decay", "0.5",
    ]  # fmt: skip
    assert cli.main(argv) == 0
    tuned, before = lf.load(tmp_path / "tuned" / "model.safetensors"), lf.load(first)
    assert tuned.spec == before.spec and not torch.equal(tuned.packed(), before.packed())
    assert (tuned.packed() - before.packed()).abs().max() < 0.01  # four steps of 1e-4
    assert torch.equal(tuned.stages[0].skip[::2], -tuned.stages[0].skip[1::2])
    assert [p["loss"] for p in tuned.card["phases"]] == ["matching"] * 4


def test_training_needs_no_download(tmp_path):
    table = {
        "out": str(tmp_path), "sigma": 0.1, "batch_size": 2, "data": {"synthetic": "ellipses", "crop": 16},
        "model": {"family": "ridge", "hidden": 2, "skip_kernel": 3, "initialise": "default"}, "schedule": {"steps": 2},
    }  # fmt: skip
    from lpn_fast.training import run

    before, run.SYNTHETIC_SIDE = run.SYNTHETIC_SIDE, 32
    try:
        model = run.train(from_dict(table), progress=False)
    finally:
        run.SYNTHETIC_SIDE = before
    assert "synthetic images (ellipses)" in model.card["data"]


def test_bad_trainer_arguments_are_named():
    for arguments, message in (
        ({"clip_norm": 0.0}, "clip_norm must be positive or None, got 0.0"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \(0, 1\), got 1.0"),
        ({"validate_every": 0}, "validate_every must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            small_trainer(**arguments)
    with pytest.raises(TypeError, match="sampler must be callable"):
        small_trainer(sampler=3)
    assert WeightAverage(lf.MLPLPN(1), 0.5).tensors
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small_trainer(phases=[Phase("l2", 1, 1e-3)]).run()
