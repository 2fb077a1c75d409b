"""The registry of families: what a class declares is all that training, checkpoints, command line and docs need."""

import re
from pathlib import Path

import pytest
import torch
from cases import relative

import lpn_fast as lf
from lpn_fast import cli
from lpn_fast.algebra.spec import Spec, Stage
from lpn_fast.networks.registry import FAMILIES, register, trainable
from lpn_fast.training import from_dict, run
from lpn_fast.training.run import build_model

SMALL = {  # options of networks that a test can train
    "explicit": ["--skip-kernel", "3", "--hidden", "4"],
    "frame": ["--skip-kernel", "3", "--gates", "1,1,6"],
    "mixture": ["--skip-kernel", "3", "--hidden", "4"],
    "ridge": ["--skip-kernel", "3", "--hidden", "4"],
    "multiscale": ["--skip-kernel", "3", "--hidden", "4", "--strides", "1", "2"],
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(run, "SYNTHETIC_SIDE", 32)
    monkeypatch.setattr(run, "SYNTHETIC_POOL", 4)


def trained(out, family: str, *sigma: str, more=()) -> lf.LPN:
    """The model of a run of three steps of the command, which also verifies it."""
    argv = ["train", "--synthetic", "ellipses", "--crop", "16", "--batch-size", "2", "--steps", "3", "--out", str(out)]
    assert cli.main([*argv, "--family", family, "--sigma", *sigma, *more]) == 0
    return lf.load(out / "model.safetensors")


@pytest.fixture
def toy():
    """A family of two stages, as somebody would write it: this is all there is of it."""

    @register("toy", "two stages", {"width": "hidden", "side": "skip_kernel", "beta": "beta"}, noise="optional")
    class ToyLPN(lf.LPN):
        def __init__(self, channels, width=6, side=3, beta=50.0, sigma_conditional=False):
            skip = {"skip_kernel": side, "skip_padding": side // 2}
            stages = Stage(width, **skip), Stage(width, 3, padding=1, **skip, heads=("linear",))
            levels = (0.05, 0.2) if sigma_conditional else ()
            super().__init__(Spec("conv", channels, stages, beta, 1e-3, linear=True, noise_levels=levels))

        def step_scales(self):
            return {"stages.1.head": 0.5}

        @torch.no_grad()
        def project_(self):
            super().project_()
            self.stages[0].bias.clamp_(max=0)
            return self

    yield ToyLPN
    del FAMILIES["toy"]


@pytest.mark.parametrize("sigma", [("0.1",), ("0.05", "0.2")], ids=["one level", "a range"])
def test_a_new_family_is_trained_saved_loaded_and_verified_by_what_it_declares(toy, sigma, tmp_path, capsys):
    model = trained(tmp_path / "run", "toy", *sigma, more=["--hidden", "5", "--skip-kernel", "3"])
    assert type(model) is toy and model.is_noise_conditional == (len(sigma) == 2)
    assert model.spec.stages[0].width == 5 and model.spec.beta == 50, "an option not given is left to the class"
    assert model.card["verified"] == "every property" and model.card["config"]["model"]["family"] == "toy"
    assert (model.stages[0].bias <= 0).all(), "its own projection was used"
    level = 0.1 if model.is_noise_conditional else None
    assert lf.verify(model, torch.rand(2, 1, 9, 9), level).all_hold
    capsys.readouterr()
    assert cli.main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert "ridge,toy}" in text and re.search(r"toy +two stages\n +--hidden --skip-kernel --beta 50", text)


def test_a_file_of_a_family_that_is_not_known_is_read_as_a_plain_network(toy, tmp_path):
    model, x = toy(1).eval(), torch.rand(1, 1, 8, 8)
    path = lf.save(model, tmp_path / "toy.safetensors")
    kept = FAMILIES.pop("toy")
    try:
        loaded = lf.load(path)
        assert type(loaded) is lf.LPN and torch.equal(loaded(x), model(x))
        with pytest.raises(ValueError, match="model.family must be one of .*'multiscale'.*got 'toy'"):
            from_dict({"out": "x", "sigma": 0.1, "data": {"synthetic": "ellipses"}, "model": {"family": "toy"}})
    finally:
        FAMILIES["toy"] = kept


def test_a_name_is_given_once(toy):
    with pytest.raises(ValueError, match="family must have a name of its own, got 'toy' again"):
        register("toy", "another", {})(lf.LPN)


@pytest.mark.parametrize("family", [name for name in trainable() if FAMILIES[name].noise != "never"])
def test_every_family_that_can_read_the_noise_level_trains_at_one(family, tmp_path):
    torch.manual_seed(0)
    model = trained(tmp_path / "run", family, "0.05", more=SMALL[family])
    always = FAMILIES[family].noise == "always"
    assert type(model) is FAMILIES[family].network and model.spec.noise_levels == ((0.05,) if always else ())
    x = torch.rand(2, 1, 12, 12)
    level = 0.05 if always else None
    assert torch.isfinite(model(x, level)).all() and model.card["verified"] == "every property"
    assert lf.verify(model, x, level).all_hold


def test_with_one_knot_the_thresholds_are_the_same_at_every_level():
    """In units of the noise: f(s x, s sigma) = s f(x, sigma), which several knots need not keep."""
    torch.manual_seed(0)
    model, x = lf.FrameLPN(1, kernel=3, sigma_conditional=(0.05,)).double(), torch.rand(1, 1, 9, 9).double()
    with torch.no_grad():
        model.stages[1].noise.normal_()
    assert relative(model(3 * x, 0.15), 3 * model(x, 0.05)) < 1e-12


def test_fine_tuning_at_one_level_goes_on_from_a_network_that_reads_levels(tmp_path):
    first = lf.save(lf.FrameLPN(1, kernel=3, gates=()), tmp_path / "first.safetensors")
    tuned = trained(tmp_path / "run", "multiscale", "0.05", more=["--start", str(first)])
    assert type(tuned) is lf.FrameLPN and tuned.card["sigma"] == 0.05


@pytest.mark.parametrize("family, given", [("mixture", {"beta": 10.0}), ("ridge", {"strides": [1, 2]})])
def test_options_that_a_family_does_not_have_are_refused(family, given):
    table = {"out": "x", "sigma": 0.1, "data": {"synthetic": "ellipses"}, "model": {"family": family, **given}}
    with pytest.raises(ValueError, match=f"model.{next(iter(given))} is no option of the family '{family}'"):
        build_model(from_dict(table))


def test_networks_of_vectors_are_no_families_of_images():
    table = {"out": "x", "sigma": 0.1, "data": {"synthetic": "ellipses"}}
    with pytest.raises(ValueError, match="must be a network of images, got one of vectors: laplacian"):
        build_model(from_dict(table | {"model": {"family": "laplacian"}}))
    assert "dense" in FAMILIES and "dense" not in trainable()


def test_shipped_models_are_of_registered_families():
    classes = {family.network for family in FAMILIES.values()}
    for name in lf.list_pretrained():
        model = lf.pretrained(name)
        assert type(model) in classes
        config = from_dict(model.card["config"])  # names of families that were written long ago
        if config.model.start is None:
            assert type(build_model(config)) is type(model)
            assert build_model(config).spec == model.spec


@pytest.mark.parametrize("model", [lf.FrameLPN(1, kernel=3), lf.MixtureLPN(1, 3, 4), lf.RidgeLPN(1, 4, 3)])
def test_a_class_is_only_made_of_a_spec_that_it_has(model):
    assert type(model).has_form_of(model.spec)
    assert not type(model).has_form_of(lf.ConvLPN(1, hidden=2, strides=(1, 2)).spec)


def test_the_page_on_training_lists_the_families():
    page = (Path(lf.__file__).parent / "docs" / "training.md").read_text()
    rows = re.findall(r"^\| `([a-z]+)` \| `(\w+)` \| (.*?) \| (.*?) \|$", page.split("## Families")[1], re.M)
    listed = {name: (network, re.findall("`([a-z_]+)`", options), noise) for name, network, options, noise in rows}
    said = {"always": "always read", "optional": "read if a range is trained"}
    assert listed == {
        name: (family.network.__name__, list(family.options.values()), said[family.noise])
        for name, family in FAMILIES.items()
        if family.options and family.fixed is None
    }
