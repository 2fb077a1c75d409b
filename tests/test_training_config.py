"""Runs described by a file or by flags: what is read, refused, recorded."""

import warnings

import pytest
import torch
from training_cases import small_trainer

import lpn_fast as lf
from lpn_fast import cli
from lpn_fast.networks.initialise import SHRINK
from lpn_fast.training import Phase
from lpn_fast.training.average import WeightAverage
from lpn_fast.training.config import from_dict, merge, read_config
from lpn_fast.training.run import build_model

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_networks_start_as_they_train_fastest_and_are_told_the_noise():
    base = {"sigma": 0.1, "out": "nowhere", "data": {"synthetic": "dead-leaves"}}

    def weights(**model):
        torch.manual_seed(3)
        return build_model(from_dict(base | {"model": {"hidden": 4, "skip_kernel": 3, **model}})).packed()

    assert torch.equal(weights(), weights(initialise="default"))
    assert torch.equal(weights(squared_head=False), weights(squared_head=False, initialise="principled"))
    assert not torch.equal(weights(), weights(initialise="published"))
    for family in ("multiscale", "ridge"):
        model = build_model(from_dict(base | {"model": {"hidden": 4, "skip_kernel": 3, "family": family}}))
        assert model.stages[0].bias.min().item() == pytest.approx(-SHRINK * base["sigma"])


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
