"""Volumes, (N, C, D, H, W): what images have, and what refuses them. The properties of a prox: tests by family."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from cases import everything, relative
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import lpn_fast as lf
from lpn_fast import cli, pipeline
from lpn_fast.algebra import reference
from lpn_fast.algebra.spec import Spec, Stage, from_dict, to_dict
from lpn_fast.ops import registry
from lpn_fast.ops.solve.lbfgs import WEIGHTS, _blurred
from lpn_fast.training import Deblurring, Phase, Trainer
from lpn_fast.training.denoiser import denoising_figures


def network(channels=1, dtype=torch.float64, **options) -> lf.ConvLPN:
    torch.manual_seed(0)
    options = {"hidden": 4, "strides": (1, 2), "beta": 20.0, "alpha": 0.1, "ndim": 3} | options
    return lf.ConvLPN(channels, **options).to(dtype).requires_grad_(False)


def volumes(*shape, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def volume_sampler(count, generator):
    return torch.rand(count, 1, 6, 5, 7, generator=generator)


# ---- the network


def assert_defined(model, x, p, v):
    """Values and derivatives are those of the specification."""
    definition = model.spec, x, model.packed().detach()
    wanted = reference.potential(*definition), reference.prox(*definition), reference.hvp(*definition, None, v)
    for ours, theirs in zip(
        everything(model, x, p, v), (*wanted, *reference.vjp(*definition, None, p, v)), strict=True
    ):
        assert relative(ours, theirs) <= 1e-12


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    sides=st.tuples(*[st.integers(1, 7)] * 3),
    strides=st.lists(st.integers(1, 2), min_size=1, max_size=3),
    kernel=st.sampled_from((1, 3)),
    skip_kernel=st.sampled_from((1, 3, 5)),
    channels=st.integers(1, 3),
)
def test_every_size_and_geometry_agrees_with_the_definition(sides, strides, kernel, skip_kernel, channels):
    model = network(channels, strides=tuple(strides), kernel=kernel, skip_kernel=skip_kernel)
    x, v = volumes(2, channels, *sides), volumes(2, channels, *sides).flip(-1) - 0.4
    assert_defined(model.requires_grad_(True), x, torch.tensor([0.7, -1.1], dtype=torch.float64), v)


def test_a_core_that_covers_its_whole_input_is_a_matrix_product():
    """The published last stage in three dimensions: layout of its weights and its one output are those of images."""
    stages = (
        Stage(3, skip_kernel=3, skip_padding=1),
        Stage(4, 4, 1, 0, skip_kernel=4, heads=("linear",)),
    )
    torch.manual_seed(0)
    model = lf.LPN(Spec("conv", 2, stages, 5.0, 0.1, image_size=(4, 4, 4), ndim=3)).double()
    x, v = volumes(3, 2, 4, 4, 4), volumes(3, 2, 4, 4, 4).flip(0)
    assert model.spec.stage_sizes(4, 4, 4) == [(4, 4, 4), (1, 1, 1)]
    assert_defined(model, x, torch.ones(3, dtype=torch.float64), v)
    with pytest.raises(ValueError, match=r"images of \(4, 4, 4\) pixels, got \(4, 4, 5\)"):
        model(volumes(1, 2, 4, 4, 5))


def test_axes_are_treated_alike():
    """Turning volume and kernels together turns f: no axis is special, none is mistaken for another."""
    model, x = network(strides=(2, 1)), volumes(2, 1, 4, 7, 6)
    for order in ((2, 0, 1), (1, 0, 2)):
        axes = (0, 1, *(2 + i for i in order))
        turned = network(strides=(2, 1))
        for mine, theirs in zip(turned.parameters(), model.parameters(), strict=True):
            mine.copy_(theirs.permute(axes) if theirs.dim() == 5 else theirs)
        assert relative(turned(x.permute(axes)), model(x).permute(axes)) <= 1e-13


def test_a_volume_of_one_slice_is_an_image():
    """With kernels that are zero off their middle slice, and one slice, psi is that of two dimensions."""
    volume = network(strides=(1,))
    image = network(strides=(1,), skip_kernel=3, ndim=2)
    for mine, theirs in zip(volume.parameters(), image.parameters(), strict=True):
        mine.copy_(F.pad(theirs[:, :, None], (0, 0, 0, 0, 1, 1)) if theirs.dim() == 4 else theirs)
    x = volumes(2, 1, 7, 6)
    assert relative(volume(x[:, :, None])[:, :, 0], image(x)) <= 1e-13


def test_half_precisions_stay_near_float64():
    model, x = network(dtype=torch.float32, hidden=8), volumes(2, 1, 7, 8, 6, dtype=torch.float32)
    exact = network(hidden=8)(x.double())
    for precision, tolerance in (("bf16", 6e-3), ("fp16", 1e-3)):
        model.precision = precision
        assert relative(model(x), exact) <= tolerance, precision


def test_only_torch_runs_volumes_and_the_others_say_why():
    model, x = network(dtype=torch.float32), volumes(1, 1, 4, 4, 4, dtype=torch.float32)
    reasons = registry.reasons(model.spec, x)
    assert reasons["torch"] is None and reasons["cpu"] in (
        "volumes are not covered",
        lf.ops.registry._absent.get("cpu"),
    )
    assert "cpu: " in lf.explain(model, x) and lf.explain(model, x).startswith("torch: runs this call")
    if "cpu" not in registry._absent:
        with lf.use_backend("cpu"), pytest.raises(RuntimeError, match="'cpu'.*volumes are not covered"):
            model(x)


# ---- files


def test_files_of_images_are_written_as_before_and_read_as_images():
    image = lf.ConvLPN(1, hidden=2, strides=(1,))
    assert "ndim" not in to_dict(image.spec) and "ndim" not in image.spec.encoded
    assert from_dict(json.loads(image.spec.encoded)).ndim == 2
    assert from_dict(to_dict(network().spec)).ndim == 3


def test_a_file_that_mistakes_volumes_for_images_is_refused(tmp_path):
    path = lf.save(network(), tmp_path / "a.safetensors")
    with safe_open(path, "pt") as file:
        header = file.metadata()
    spec = json.loads(header["spec"])
    del spec["ndim"]
    save_file(dict(network().state_dict()), path, header | {"spec": json.dumps(spec)})
    with pytest.raises(ValueError, match=r"must have shape \(4, 1, 3, 3\), got \(4, 1, 3, 3, 3\)"):
        lf.load(path)


# ---- prior and solvers


@pytest.mark.parametrize("method", ["lbfgs", "newton-cg"])
def test_inversion_value_and_strength(method):
    model, u = network(), volumes(3, 1, 5, 6, 7)
    x, free = model.prox_and_prior(u)
    value = lf.prior(model, x, method=method, tol=1e-10)
    assert value.converged.all() and relative(model(value.preimage), x) <= 1e-9
    assert (value.preimage - u).flatten(1).norm(dim=1).le(value.inversion.error_bound + 1e-9).all()
    assert torch.allclose(value.value, free, rtol=1e-9)
    envelope, slope = lf.moreau_envelope(model, u)
    assert torch.allclose(envelope, 0.5 * slope.flatten(1).square().sum(1) + free)
    half = model.prox(u, strength=0.5, tol=1e-11)
    w = 2 * u - half  # t w + (1 - t) f(w) = u with half = f(w)
    assert relative(model(w), half) <= 1e-9


def test_the_metric_of_inversions_averages_over_neighbours_along_all_axes():
    kernel = _blurred(F.pad(torch.ones(1, 1, 1, 1, 1), (1,) * 6))[0, 0]
    one = torch.tensor(WEIGHTS)
    assert torch.allclose(kernel, one[:, None, None] * one[:, None] * one)


def test_prior_of_rescaled_volumes_and_an_amortised_one():
    model, x = network(), volumes(2, 1, 4, 5, 6)
    assert relative(lf.rescaled(model, 1 / 255)(255 * x), 255 * model(x)) <= 1e-12
    fast = lf.AmortisedPrior.train(model.float(), lambda n, g: torch.rand(n, 1, 4, 5, 6, generator=g), steps=2)
    estimate = fast(x.float())
    assert (estimate.lower <= estimate.upper).all()
    with pytest.raises(ValueError, match=r"\(kind, ndim, channels, image size\)"):
        lf.AmortisedPrior(model, lf.ConvLPN(1, hidden=2))


class Means:
    """Means of pairs of slices: an operator that is nobody's subclass."""

    def A(self, x):
        return (x[:, :, ::2] + x[:, :, 1::2]) / 2

    def A_adjoint(self, y):
        return y.repeat_interleave(2, dim=2) / 2


@pytest.mark.parametrize("solver", ["pgd", "fista", "admm", "drs", "hqs"])
@pytest.mark.parametrize("physics", [lf.physics.Denoising(), Means()], ids=["denoising", "plain object"])
def test_solvers_reconstruct_volumes(solver, physics):
    model, truth = network(sigma_conditional=(0.05, 0.2)), volumes(2, 1, 6, 5, 7)
    y = (
        physics.A(truth)
        + 0.1 * torch.randn(physics.A(truth).shape, generator=torch.Generator().manual_seed(2)).double()
    )
    result = getattr(lf.solvers, solver)(y, physics, model, noise=0.1, max_iter=40)
    assert result.x.shape == truth.shape and result.conditions.all_hold, str(result.conditions)
    first, last = result.objective[0], result.objective[-1]
    assert (last < first).all()
    if solver == "pgd":
        assert (result.objective.diff(dim=0) <= 1e-10 * first.abs()).all()


def test_a_large_batch_is_cut_into_pieces_of_the_cache(monkeypatch):
    from lpn_fast.solvers import prox

    model, x = network(), volumes(5, 1, 6, 5, 7)
    monkeypatch.setattr(prox, "CACHED_BYTES", 2 * 4 * 6 * 5 * 7 * 8)  # two volumes of four channels
    assert prox.piece(model, x) == 2
    assert relative(prox.LearnedProx.of(model)(x, 1.0, None, None)[0], model(x)) <= 1e-13


# ---- training


def test_two_steps_of_training_with_a_margin():
    torch.manual_seed(0)
    model = lf.ConvLPN(1, hidden=4, strides=(1, 2), ndim=3)
    before = model.packed().detach().clone()
    trainer = Trainer(
        model, volume_sampler, [Phase("l2", 2, 1e-2)], sigma=0.1, batch_size=3, margin=1, gain_limit=0.99,
        expansion_weight=0.1, progress=False,
    )  # fmt: skip
    x = volumes(2, 1, 6, 5, 7)
    assert torch.equal(trainer._inside(x), x[:, :, 1:-1, 1:-1, 1:-1])
    assert trainer.run()["step"] == 2
    assert not torch.equal(model.packed(), before) and lf.asymptotic_gain(model) <= 0.99 + 1e-6
    assert lf.verify(model.eval(), volumes(2, 1, 6, 5, 7, dtype=torch.float32)).all_hold


def test_figures_of_volumes_are_those_of_all_their_voxels():
    clean = volumes(5, 1, 8, 9, 10, dtype=torch.float32)
    figures = denoising_figures(network(dtype=torch.float32), clean, [0.1])
    assert list(figures) == ["psnr@0.1"] and math.isfinite(figures["psnr@0.1"])
    halves = clean.clone()
    halves[:, :, :4] += 0.1
    assert torch.allclose(lf.metrics.psnr(halves, clean), torch.full((5,), 20 + 10 * math.log10(2)).double(), atol=1e-4)


# ---- who refuses

IMAGES = lf.ConvLPN(1, hidden=2, strides=(1,))
FRAME = lf.FrameLPN(1, kernel=3, gates=())
VOLUME = volumes(1, 1, 4, 4, 4, dtype=torch.float32)


def trained(**arguments):
    return Trainer(network(dtype=torch.float32), volume_sampler, [Phase("l2", 1, 1e-3)], sigma=0.1, batch_size=2,
                   progress=False, **arguments)  # fmt: skip


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: IMAGES(VOLUME), r"x must have shape \(N, 1, H, W\), got \(1, 1, 4, 4, 4\)"),
        (lambda: FRAME(VOLUME, 0.1), r"x must have shape \(N, 1, H, W\), got \(1, 1, 4, 4, 4\)"),
        (lambda: lf.MixtureLPN(1, kernel=3)(VOLUME, 0.1), r"\(N, 1, H, W\), got \(1, 1, 4, 4, 4\)"),
        (lambda: lf.RidgeLPN(1, pairs=2, kernel=3)(VOLUME), r"\(N, 1, H, W\), got \(1, 1, 4, 4, 4\)"),
        (lambda: lf.paper_network("mnist")(VOLUME), r"\(N, 1, H, W\), got \(1, 1, 4, 4, 4\)"),
        (lambda: network(dtype=torch.float32)(VOLUME[0]), r"\(N, 1, D, H, W\), got \(1, 4, 4, 4\); add a batch axis"),
        (lambda: lf.InTiles(network())(VOLUME[0]), r"x must be a tensor \(N, 1, D, H, W\), got \(1, 4, 4, 4\)"),
        (lambda: lf.ConvLPN(1, ndim=1), "ndim must be 2 for images or 3 for volumes, got 1"),
        (lambda: Spec("dense", 1, (Stage(1, heads=("linear",)),), 1.0, ndim=3), "got 3 for a dense one"),
        (
            lambda: Spec("conv", 1, (Stage(1, heads=("linear",)),), 1.0, image_size=(4, 4), ndim=3),
            r"image_size must have 3 sides or be None, got \(4, 4\)",
        ),
        (lambda: trained(problems=Deblurring()), "problems are for image models, got one of volumes"),
        (lambda: lf.physics.Blur.gaussian(1.0).A(VOLUME), r"x must have shape \(N, C, H, W\), got \(1, 1, 4, 4, 4\)"),
        (lambda: lf.metrics.ssim(VOLUME, VOLUME), r"x must have shape \(N, C, H, W\), got \(1, 1, 4, 4, 4\)"),
        (
            lambda: lf.interop.export(network(), "f.pt2", size=(4, 4)),
            r"size must have the sides D, H, W, got \(4, 4\)",
        ),
    ],
)  # fmt: skip
def test_message_names_argument_value_and_wish(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_noise_of_volumes_must_be_given():
    model = network(sigma_conditional=(0.05, 0.2))
    with pytest.raises(ValueError, match=r"noise can only be estimated .*got \(1, 1, 8, 8, 8\); give noise="):
        lf.solvers.pgd(volumes(1, 1, 8, 8, 8), lf.physics.Denoising(), model, max_iter=1)


def test_image_files_and_commands_refuse_networks_of_volumes(tmp_path, capsys):
    from PIL import Image

    Image.new("L", (20, 30)).save(tmp_path / "a.png")
    model = network(dtype=torch.float32)
    path = str(lf.save(model, tmp_path / "volumes.safetensors"))
    with pytest.raises(ValueError, match="model must be a network of images, got one of volumes"):
        pipeline.reconstruct(tmp_path / "a.png", tmp_path / "out", task=pipeline.Denoise(0.1), model=model)
    picture = str(tmp_path / "a.png")
    for command in (
        ["denoise", picture, "--sigma", "0.1", "-o", str(tmp_path / "out")],
        ["prior", picture, "-o", str(tmp_path / "scores.jsonl")],
    ):
        assert cli.main([*command, "--model", path]) == 2
        assert "model must be a network of images" in capsys.readouterr().err
    assert cli.main(["verify", path, "--images", picture]) == 2
    assert "--images cannot be used with a network of volumes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_commands_that_make_their_own_input_take_volumes(tmp_path, capsys):
    path = str(lf.save(network(dtype=torch.float32), tmp_path / "volumes.safetensors"))
    assert cli.main(["verify", path]) == 0
    assert "all properties hold" in capsys.readouterr().out
    bench = ["bench", "--model", path, "--batch", "1", "--seconds", "0.01", "--size"]
    assert cli.main([*bench, "8x7x6"]) == 0
    assert "1x1x8x7x6" in capsys.readouterr().out
    assert cli.main([*bench, "8x7"]) == 2
    assert "--size must be DxHxW" in capsys.readouterr().err
