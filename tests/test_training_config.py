"""Runs described by a file or by flags: what is read, refused, recorded."""

import dataclasses
import json
import re
import typing
import warnings

import pytest
import torch
from training_cases import small_trainer

import lpn_fast as lf
from lpn_fast import cli
from lpn_fast.cli import train as train_command
from lpn_fast.networks.initialise import SHRINK
from lpn_fast.training import Phase
from lpn_fast.training.average import WeightAverage
from lpn_fast.training.config import TABLES, choices_of, flag_of, from_dict, merge, read_config
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
        ({"data": {"sources": ["x"], "channels": 4}}, r"data.channels must be one of \[1, 3\], got 4"),
        ({"precision": "fp8"}, "precision must be one of .*'bf16'.*got 'fp8'"),
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


def fields() -> list[tuple[str, dataclasses.Field]]:
    """(place in a configuration, field) of every entry."""
    return [
        (table + f.name, f)
        for table, cls in TABLES.items()
        for f in dataclasses.fields(cls)
        if f.name + "." not in TABLES
    ]


def flags_of(*argv) -> dict:
    """What the command makes of arguments, as the tables of a configuration."""
    return train_command.given_by(cli.build_parser().parse_args(["train", *argv]))


def test_every_entry_has_a_flag_of_its_own_and_a_help(capsys):
    assert cli.main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    flags = [flag_of(f) for _, f in fields()]
    assert len(set(flags)) == len(flags) > 50
    for place, f in fields():
        assert f.metadata["help"], place
        assert re.search(rf" {flag_of(f)}[ ,].*{re.escape(f.metadata['help'])}", text), place


def test_flags_say_what_a_file_would(tmp_path):
    """One value of every entry, as a flag and as it is in a file."""
    words = {
        "sigma": ("0.05 0.2", [0.05, 0.2]), "data.window": ("-1000 400", [-1000.0, 400.0]),
        "model.gates": ("1,1,8 3,2,4", [(1, 1, 8), (3, 2, 4)]), "model.strides": ("1 2", [1, 2]),
        "data.sources": ("a b", ["a", "b"]), "data.validate": ("a b", ["a", "b"]),
        "data.intensities": ("-1000 400", [-1000.0, 400.0]),
        "data.samples": ("1 3", [1, 3]), "data.validate_samples": ("1 3", [1, 3]),
    }  # fmt: skip
    for place, f in fields():
        hint = typing.get_type_hints(TABLES[place[: -len(f.name)]])[f.name]
        if bool in (hint, *typing.get_args(hint)):
            argv, value = ["--no-" + flag_of(f)[2:]], False
        else:
            choices = choices_of(f)
            number = 3 if int in (hint, *typing.get_args(hint)) else 0.5 if "float" in str(hint) else "x"
            word, value = words.get(
                place, (str(choices[-1] if choices else number), choices[-1] if choices else number)
            )
            argv = [flag_of(f), *word.split()]
        *table, key = place.split(".")
        assert flags_of(*argv) == ({table[0]: {key: value}} if table else {key: value}), place
        data = {} if place == "data.synthetic" else {"sources": ["x"]}
        config = from_dict(merge({"out": "x", "sigma": 0.1, "data": data}, flags_of(*argv)))
        stored = config.to_dict()[table[0]][key] if table else config.to_dict()[key]
        assert stored == json.loads(json.dumps(value)), place


def test_one_value_of_a_level_or_a_range_is_the_level():
    assert flags_of("--sigma", "0.1") == {"sigma": 0.1}
    assert flags_of("--window", "lung") == {"data": {"window": "lung"}}
    assert flags_of("--gates") == {"model": {"gates": []}}, "a frame without gates"


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--gates", "1,1"], "argument --gates: a gate must be side,stride,width, e.g. 1,1,64, got '1,1'"),
        (["--window", "bone"], "argument --window: a window must be one of .*lung.* got 'bone'"),
        (["--family", "frames"], "argument --family: invalid choice: 'frames'"),
        (["--sigma", "loud"], "argument --sigma: invalid float value: 'loud'"),
    ],
)
def test_wrong_flags_are_named(argv, message, capsys):
    assert cli.main(["train", *argv]) == 2
    assert re.search(message, capsys.readouterr().err)


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


def test_a_run_goes_on_from_the_averaged_weights_of_another_that_was_interrupted(tmp_path):
    options = [
        "train", "--synthetic", "dead-leaves", "--sigma", "0.1", "--family", "ridge", "--hidden", "4",
        "--skip-kernel", "3", "--crop", "16", "--batch-size", "2", "--ema-decay", "0.5", "--no-verify",
    ]  # fmt: skip
    resume = str(tmp_path / "one" / "resume.safetensors")
    assert cli.main([*options, "--out", str(tmp_path / "one"), "--steps", "5"]) == 0
    with_average = lf.load(tmp_path / "one" / "model.safetensors")
    assert cli.main([*options, "--out", str(tmp_path / "two"), "--steps", "1", "--start", resume]) == 0
    went_on = lf.load(tmp_path / "two" / "model.safetensors")
    assert 0 < (went_on.packed() - with_average.packed()).abs().max() <= 2.01e-3  # one step of Adam, and no start anew
    base = {"sigma": 0.1, "out": "nowhere", "data": {"synthetic": "dead-leaves"}}
    with pytest.raises(ValueError, match="model.start must be a run of the same network, .* is of another"):
        build_model(from_dict(base | {"model": {"family": "ridge", "hidden": 6, "skip_kernel": 3, "start": resume}}))


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


def test_the_border_is_an_option_of_frames_and_turns_the_model_to_go_on_from(tmp_path):
    base = {"sigma": 0.1, "out": "nowhere", "data": {"synthetic": "dead-leaves"}}

    def built(**model):
        return build_model(from_dict(base | {"model": model}))

    small = {"family": "mixture", "hidden": 4, "skip_kernel": 3}
    assert built(**small).spec.border == "zero" and built(**small, border="mirror").spec.border == "mirror"
    assert built(family="frame", skip_kernel=3, border="mirror").spec.border == "mirror"
    first = lf.save(lf.MixtureLPN(1, 3, 4), tmp_path / "first.safetensors")
    turned = built(start=str(first), border="mirror")
    assert turned.spec.border == "mirror" and torch.equal(turned.packed(), lf.load(first).packed())
    assert built(start=str(first)).spec.border == "zero"
    with pytest.raises(ValueError, match="model.border is no option of the family 'ridge'"):
        built(family="ridge", hidden=4, skip_kernel=3, border="mirror")
    with pytest.raises(ValueError, match="explicit priors are always mirrored: natural-gray"):
        built(start="natural-gray", border="mirror")


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
