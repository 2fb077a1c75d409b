"""Commands around a model: convert, export, bench, completion."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

import lpn_fast as lf
from lpn_fast import cli
from lpn_fast.networks.published import published_config


def small(tmp_path):
    torch.manual_seed(0)
    model = lf.ConvLPN(1, hidden=2, strides=(1, 2), sigma_conditional=True)
    return model.eval(), str(lf.save(model, tmp_path / "model.safetensors"))


def published(tmp_path):
    """A state dict in the published names with random values, its model.json, and the model it is."""
    config = {"model": "laplacian", "params": {"hidden": 5, "layers": 2, "beta": 10.0, "alpha": 0.005}}
    generator, state = torch.Generator().manual_seed(0), {}
    for key, shape in {"lin.0": (5, 1), "lin.1": (5, 5), "lin.2": (5, 5), "lin.3": (1, 5)}.items():
        state[f"{key}.weight"] = torch.rand(shape, generator=generator)
    for key, shape in {"res.0": (5, 1), "res.1": (5, 1), "res.2": (1, 1)}.items():
        state[f"{key}.weight"] = torch.randn(shape, generator=generator)
        state[f"{key}.bias"] = torch.randn(shape[0], generator=generator)
    torch.save({"model_state_dict": state}, tmp_path / "model.pt")
    (tmp_path / "model.json").write_text(json.dumps(config))
    return lf.from_reference(state, config)


def test_convert_writes_the_model_of_a_published_checkpoint(tmp_path, capsys):
    wanted, out = published(tmp_path), tmp_path / "out.safetensors"
    command = ["convert", str(tmp_path / "model.pt"), "-o", str(out)]
    assert cli.main([*command, "--config", str(tmp_path / "model.json"), "--sigma", "0.1", "--note", "made up"]) == 0
    loaded, x = lf.load(out), torch.linspace(-2, 2, 9)[:, None]
    assert torch.equal(loaded(x), wanted(x)) and loaded.alpha == 0.01
    assert (loaded.card["sigma"], loaded.card["note"]) == (0.1, "made up")
    assert cli.main(["verify", str(out)]) == 0
    capsys.readouterr()
    before = out.read_bytes()
    for options, message in (
        (["--family", "laplacian"], "--out must name a new file"),
        (["--family", "laplacian", "-o", str(tmp_path / "b")], "checkpoint does not fit laplacian"),
        (["--config", str(out), "-o", str(tmp_path / "b")], "out.safetensors is not readable"),
        (["--family", "laplacian", "-o", str(tmp_path / "b"), "--sigma", "-1"], "--sigma: must be a positive number"),
    ):
        assert cli.main([*command, *options]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert out.read_bytes() == before and not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["laplacian", "mnist", "celeba", "mayoct"])
def test_the_families_of_convert_are_the_published_networks(name):
    from lpn_fast.networks.published import published_spec

    config = published_config(name)
    if name in ("laplacian", "mnist"):  # the large ones take a second to draw
        assert lf.paper_network(name).spec == published_spec(config["model"], config["params"])
    with pytest.raises(ValueError, match="name must be one of"):
        published_config(name + "x")


def test_export_writes_a_graph_that_runs(tmp_path, capsys):
    model, path = small(tmp_path)
    assert cli.main(["export", path, "-o", str(tmp_path / "f.pt2"), "--size", "12", "8", "--potential"]) == 0
    assert "(x, sigma) -> (f, psi)" in capsys.readouterr().out
    x, sigma = torch.rand(3, 1, 12, 8), torch.full((3,), 0.1)
    f, psi = torch.export.load(tmp_path / "f.pt2").module()(x, sigma)
    assert torch.allclose(f, model(x, sigma=0.1), atol=1e-5) and psi.shape == (3,)
    for arguments, message in (
        ([path, "-o", "f.bin"], "must end in"),
        ([path, "-o", "f.pt2", "--size", "0", "4"], "--size: must be a positive whole number"),
        (["none", "-o", "f.pt2"], "--model must be a shipped model"),
    ):
        assert cli.main(["export", *arguments]) == 2
        assert message in capsys.readouterr().err


def completed(script, *words):
    """What bash offers for the last of the words."""
    line = " ".join(f"'{word}'" for word in ("lpn-fast", *words))
    call = f"_shtab_lpn_fast lpn-fast {line.split()[-1]}"
    code = f'{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words)}; {call}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:-1]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.skipif(find_spec("shtab") is None, reason="shtab is not installed (extra 'completion')")
def test_bash_completes_commands_options_values_and_files(tmp_path, capsys):
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert completed(script, "co") == ["convert", "completion"]
    assert completed(script, "denoise", "--si") == ["--simulate", "--sigma"]
    assert completed(script, "reconstruct", "x", "--solver", "") == ["pgd", "fista", "admm", "drs", "hqs", "gradient"]
    assert completed(script, "completion", "z") == ["zsh"]
    (tmp_path / "two words.png").touch()
    assert completed(script, "denoise", f"{tmp_path}/t") == [f"{tmp_path}/two words.png"]


def test_completion_without_shtab_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 2
    assert 'pip install "lpn-fast[completion]"' in capsys.readouterr().err


@pytest.mark.skipif(find_spec("shtab") is None, reason="shtab is not installed (extra 'completion')")
def test_zsh_and_fish_get_every_command_and_option(capsys):
    for shell in ("zsh", "fish"):
        assert cli.main(["completion", shell]) == 0
        script = capsys.readouterr().out
        for word in ("reconstruct", "prior", "boundary", "circular", "completion"):
            assert word in script
    assert cli.main(["completion", "csh"]) == 2
