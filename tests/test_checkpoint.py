"""Checkpoints: what is written comes back, and nothing else is accepted."""

import json

import pytest
import torch
from cases import Case, files_below
from safetensors.torch import save_file

import lpn_fast as lf
from lpn_fast.networks.shipped import RENAMED, is_shipped


def test_round_trip_is_bit_exact(case, tmp_path):
    case.model.card = {"sigma": 0.1, "data": "none"}
    path = lf.save(case.model, tmp_path / "model.safetensors")
    loaded = lf.load(path)
    assert torch.equal(loaded(case.x, case.sigma), case.model(case.x, case.sigma))
    assert type(loaded) is type(case.model) and loaded.spec == case.model.spec
    assert loaded.card == case.model.card and not loaded.training
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"], "no temporary file is left"


@pytest.mark.parametrize(
    "model",
    [lf.RidgeLPN(1, pairs=2, kernel=3), lf.ConvLPN(1, hidden=2, strides=(1, 2)), lf.MLPLPN(2, hidden=3, layers=1)],
    ids=lambda model: type(model).__name__,
)
def test_a_model_comes_back_as_the_class_it_was(model, tmp_path):
    loaded = lf.load(lf.save(model, tmp_path / "a.safetensors"))
    assert type(loaded) is type(model)
    plain = lf.LPN(model.spec)
    plain.load_state_dict(model.state_dict())
    assert type(lf.load(lf.save(plain, tmp_path / "b.safetensors"))) is lf.LPN

    class Own(type(model)):
        """A user's class: nothing of it is in the file, so its base is what comes back."""

    model.__class__ = Own
    assert type(lf.load(lf.save(model, tmp_path / "c.safetensors"))) is type(loaded)


def test_the_class_in_a_header_is_only_a_hint(tmp_path):
    """Files older than the entry are told by their spec; a class that does not fit the spec is not made."""
    assert type(lf.load(written(tmp_path))) is lf.LPN
    assert type(lf.load(written(tmp_path, family="RidgeLPN"))) is lf.LPN
    assert type(lf.load(written(tmp_path, family="os.system"))) is lf.LPN
    ridge = lf.RidgeLPN(1, pairs=2, kernel=3)
    header = {"format": "lpn-fast", "version": "1", "spec": ridge.spec.encoded}
    save_file(dict(ridge.state_dict()), tmp_path / "old", header)
    assert type(lf.load(tmp_path / "old")) is lf.RidgeLPN


def test_a_full_disk_is_an_oserror_and_what_was_there_is_kept(tmp_path):
    """safetensors has an error of its own for that."""
    path = lf.save(lf.MLPLPN(2, hidden=3, layers=1), tmp_path / "a.safetensors")
    before = path.read_bytes()
    with files_below(2000), pytest.raises(OSError, match="a.safetensors cannot be written"):
        lf.save(lf.MLPLPN(2, hidden=50), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_saving_refuses_nan_and_keeps_what_was_there(tmp_path):
    model = Case("dense").model
    path = lf.save(model, tmp_path / "model.safetensors")
    before = path.read_bytes()
    with torch.no_grad():
        model.linear[0] = float("nan")
    with pytest.raises(ValueError, match="linear must be finite"):
        lf.save(model, path)
    assert path.read_bytes() == before
    with pytest.raises(TypeError, match="must be an lpn_fast.LPN, got Linear"):
        lf.save(torch.nn.Linear(1, 1), path)


def written(tmp_path, tensors=None, **header):
    """A checkpoint of a small network with parts replaced."""
    model = lf.MLPLPN(2, hidden=3, layers=1)
    good = {"format": "lpn-fast", "version": "1", "spec": model.spec.encoded, "card": "{}"}
    tensors = dict(model.state_dict()) | (tensors or {})
    save_file({n: t.contiguous() for n, t in tensors.items() if t is not None}, tmp_path / "m", good | header)
    return tmp_path / "m"


@pytest.mark.parametrize(
    "tensors, header, message",
    [
        ({}, {"format": "other"}, "format='other'"),
        ({}, {"version": "99"}, "version 99"),
        ({"stages.1.core": -torch.ones(3, 3)}, {}, "stages.1.core must be non-negative, got a minimum of -1"),
        ({"stages.1.core": torch.full((3, 3), float("inf"))}, {}, "stages.1.core must be finite"),
        ({"stages.1.core": torch.ones(2, 3)}, {}, r"must have shape \(3, 3\), got \(2, 3\)"),
        ({"stages.1.core": None}, {}, "missing.*stages.1.core"),
        ({"surplus": torch.ones(1)}, {}, "unexpected.*surplus"),
        ({}, {"card": "[1]"}, "its card must be a JSON object, got list"),
    ],
)
def test_files_that_are_not_ours_are_refused(tmp_path, tensors, header, message):
    with pytest.raises(ValueError, match=message):
        lf.load(written(tmp_path, tensors, **header))


def test_unknown_keys_in_the_spec_are_named(tmp_path):
    spec = json.loads(lf.MLPLPN(2, hidden=3, layers=1).spec.encoded) | {"betta": 1.0}
    with pytest.raises(ValueError, match="unknown keys.*betta"):
        lf.load(written(tmp_path, spec=json.dumps(spec)))


def test_truncated_and_missing_files(tmp_path):
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="truncated or foreign"):
        lf.load(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        lf.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="must be one of.*'natural-infrared'"):
        lf.pretrained("natural-infrared")


def test_shipped_models_load_small_and_carry_their_card():
    names = lf.list_pretrained()
    by_use = {
        "natural-gray",
        "natural-color",
        "denoise-gray",
        "ct",
        "mnist",
        "synthetic-gray",
        "fast-gray",
        "fast-color",
    }
    assert by_use <= set(names)
    for name in names:
        model = lf.pretrained(name)
        assert {"sigma", "value_range", "data", "result"} <= set(model.card)
        assert sum(p.numel() * p.element_size() for p in model.parameters()) < 5e6
        assert all(
            (p >= 0).all() for n, p in model.named_parameters() if n.endswith(("core", "head", "head_squared", "odds"))
        )


def test_former_names_load_what_they_are_called_now():
    for former, now in RENAMED.items():
        assert former not in lf.list_pretrained() and is_shipped(former)
        with pytest.warns(DeprecationWarning, match=f"'{former}' is called '{now}' now"):
            model = lf.pretrained(former)
        assert model.source == now and torch.equal(model.packed(), lf.pretrained(now).packed())
    assert not is_shipped("natural-infrared")


def test_names_say_whether_f_is_one_pass():
    for name in lf.list_pretrained():
        is_solve = isinstance(lf.pretrained(name), lf.ExplicitLPN)
        assert not (is_solve and name.startswith(("denoise-", "fast-", "frame-"))), name
    assert all(isinstance(lf.pretrained(name), lf.ExplicitLPN) for name in ("natural-gray", "natural-color", "ct"))
