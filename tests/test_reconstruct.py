"""`lf.reconstruct`: nothing tuned, every unit, every operator; and what it says when something is wrong."""

import warnings

import pytest
import scipy.sparse
import torch
from physics_cases import randn
from test_starts import Foreign, blobs

import lpn_fast as lf
from lpn_fast import physics as P
from lpn_fast.choice import Choice, shipped_for
from lpn_fast.metrics import psnr
from lpn_fast.restoration import GRADIENT_WEIGHTS, MINIMISER_WEIGHTS, SPLIT, _lowest, _usual_weight
from lpn_fast.solvers.problem import checked_problem

GRAY = lf.pretrained("frame-gray")
SIDE = 48
OPERATORS = {
    "inpainting": lambda: P.Inpainting.random(SIDE, seen=0.3),
    "compressed sensing": lambda: P.CompressedSensing(SIDE, ratio=1 / 3),
    "downsampling": lambda: P.Downsampling.gaussian(2),
    "blur": lambda: P.Blur.gaussian(1.5, boundary="full"),
    "ct": lambda: P.ParallelBeamCT(SIDE, 24, 72, extent=68.0),
}


def disc():
    """A bright disc on a soft ground, (1, 1, SIDE, SIDE)."""
    at = torch.arange(SIDE) - SIDE / 2
    return 0.3 * blobs(SIDE, SIDE).float() + 0.5 * (at[:, None].square() + at.square() < 200)


def measured(name, noise=0.02, samples=1, gain=1.0):
    physics = OPERATORS[name]()
    x = disc().repeat(samples, 1, 1, 1)
    clean = physics.A(x)
    return x, physics, gain * (clean + noise * randn(*clean.shape, seed=3).float())


@pytest.mark.parametrize("name", OPERATORS)
def test_the_result_is_ahead_of_the_start_and_inside_its_theorem(name):
    x, physics, y = measured(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = lf.reconstruct(y, physics, noise=0.02)
    start, pilot, descent = result.stages
    assert psnr(result.x, x) > psnr(start.x, x) + 1 and psnr(result.x, x) > psnr(pilot.x, x) - 0.3
    assert torch.equal(descent.x, result.x) and result.conditions.all_hold and result.converged.all()
    assert float(result.objective.diff(dim=0).clamp_min(0).sum()) <= 1e-6 * float(result.objective.abs().max())
    assert "fast-gray" in pilot.note
    own = "natural-gray-deblur" if name == "blur" else "natural-gray"
    assert own in pilot.note and "quasi-Newton" in descent.note


def test_a_learned_prior_itself_is_a_model_to_reconstruct_with():
    x, physics, y = measured("inpainting")
    torch.manual_seed(0)
    prior = lf.ExplicitLPN(1, kernel=4, groups=12)
    result = lf.reconstruct(y, physics, prior, noise=0.02)
    assert "quasi-Newton" in result.stages[-1].note and result.conditions.all_hold and result.converged.all()
    assert psnr(result.x, x) > psnr(result.stages[0].x, x)
    weak, strong = (lf.reconstruct(y, physics, prior, noise=0.02, weight=w) for w in (0.1, 3.0))
    assert float(weak.misfit) < float(result.misfit) < float(strong.misfit), "the usual weight is one"


@pytest.mark.parametrize("name", ["inpainting", "compressed sensing", "ct"])
def test_the_unit_of_the_measurements_does_not_matter(name):
    gain = 300.0
    _, physics, y = measured(name)
    plain = lf.reconstruct(y, Foreign(physics), GRAY, noise=0.02)
    scaled = lf.reconstruct(gain * y, Foreign(physics, gain), GRAY, noise=gain * 0.02)
    assert (scaled.x - plain.x).abs().max() < 2e-3
    assert torch.allclose(scaled.misfit, plain.misfit, rtol=1e-2)


def test_samples_do_not_see_each_other():
    _, physics, y = measured("inpainting", samples=3)
    y = y * torch.tensor([1.0, 0.5, 0.8])[:, None, None, None]
    noise = torch.tensor([0.02, 0.01, 0.016], dtype=torch.float64)
    together = lf.reconstruct(y, physics, GRAY, noise=noise)
    alone = lf.reconstruct(y[1:2], physics, GRAY, noise=0.01)
    assert torch.allclose(together.x[1:2], alone.x, atol=1e-5)


def test_an_isometry_needs_no_pilot():
    x, noisy = blobs(SIDE, SIDE).float(), blobs(SIDE, SIDE).float() + 0.1 * randn(1, 1, SIDE, SIDE).float()
    result = lf.reconstruct(noisy, P.Denoising())
    assert [stage.name for stage in result.stages] == ["start", "descent"]
    assert "natural-gray" in result.stages[1].note
    assert psnr(result.x, x) > psnr(noisy, x) + 6


def test_a_network_of_one_level_reconstructs_without_a_pilot():
    _, physics, y = measured("blur")
    model = lf.ConvLPN(1, hidden=8).eval()
    result = lf.reconstruct(y, physics, model, noise=0.02)
    assert "single noise level" in result.stages[-1].note and result.x.shape == (1, 1, SIDE, SIDE)


def test_exact_measurements_are_no_error():
    x, physics, _ = measured("compressed sensing")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = lf.reconstruct(physics.A(x), physics, GRAY, noise=0)
    assert psnr(result.x, x) > 35


def test_colour_gets_the_colour_model_and_other_channels_one_by_one():
    physics = P.Inpainting.random(SIDE, seen=0.5)
    color = "fast-color for images of three channels, natural-color to descend"
    for channels, name in ((3, color), (2, "fast-gray for each of 2 channels")):
        y = physics.A(blobs(SIDE, SIDE).float().repeat(1, channels, 1, 1))
        result = lf.reconstruct(y + 0.02 * randn(*y.shape).float() * (y != 0), physics, noise=0.02)
        assert name in result.stages[1].note and result.x.shape[1] == channels


@pytest.mark.parametrize("solver", ["pgd", "fista", "admm", "drs", "hqs"])
def test_a_model_of_one_channel_sees_channels_one_by_one(solver):
    physics = P.Blur.gaussian(1.0)
    y = physics.A(torch.cat([blobs(16, 16), 1 - blobs(16, 16)], dim=1)).float()
    options = {"sigma": torch.tensor([0.05, 0.1]), "max_iter": 4, "tol": 0.0}
    folded = getattr(lf.solvers, solver)(torch.cat([y, y.flip(2)]), physics, GRAY, **options)
    apart = [
        getattr(lf.solvers, solver)(
            torch.cat([y, y.flip(2)])[:, c : c + 1].contiguous(), physics, GRAY, x0=None, **options
        )
        for c in (0, 1)
    ]
    assert torch.allclose(folded.x, torch.cat([one.x for one in apart], dim=1), atol=1e-5)
    assert torch.allclose(folded.objective, sum(one.objective for one in apart), rtol=1e-4)


def test_a_reconstruction_prints_as_three_lines():
    _, physics, y = measured("inpainting")
    lines = repr(lf.reconstruct(y, physics, GRAY, noise=0.02)).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("1 images of 1 x 48 x 48") and "misfit" in lines[1] and "every condition" in lines[2]


# What must be said.


def alarms_of(call):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = call()
    assert tuple(str(w.message) for w in seen) == result.warnings
    assert all(w.filename == __file__ for w in seen)
    return result.warnings


def test_bytes_are_noticed_and_the_way_out_is_named():
    x, physics, y = measured("inpainting")
    (found,) = alarms_of(lambda: lf.reconstruct(255 * y, physics, GRAY, noise=255 * 0.02))[:1]
    assert "divide y by the white level" in found
    result = lf.reconstruct(255 * y, physics, lf.rescaled(GRAY, 1 / 255), noise=255 * 0.02)
    assert not result.warnings and psnr(result.x / 255, x) > 20


@pytest.mark.parametrize("factor", [0.1, 8.0])
def test_a_noise_level_that_the_measurements_contradict_is_noticed(factor):
    _, physics, y = measured("blur", noise=0.03)
    found = alarms_of(lambda: lf.reconstruct(y, physics, noise=factor * 0.03))
    assert any("times off what y shows" in sentence for sentence in found)
    assert not any("times off" in s for s in alarms_of(lambda: lf.reconstruct(y, physics, noise=0.03)))


def test_texture_is_not_taken_for_a_wrong_noise_level():
    """Half of the picture is fine texture, which the estimate takes for noise 0.15."""
    texture = blobs(64, 64).float()
    texture[..., 16:] += 0.3 * randn(1, 1, 64, 48).float()
    y = texture + 0.01 * randn(1, 1, 64, 64, seed=4).float()
    assert float(lf.solvers.estimate_noise(y)) > 0.1
    assert not any("times off" in s for s in alarms_of(lambda: lf.reconstruct(y, P.Denoising(), GRAY, noise=0.01)))


@pytest.mark.parametrize("sigma, hint", [(25.0, "25/255 = 0.098"), (0.9, "lies outside the model's training")])
def test_a_sigma_outside_the_training_is_noticed(sigma, hint):
    _, physics, y = measured("blur")
    found = alarms_of(lambda: lf.solvers.pgd(y, physics, GRAY, sigma=sigma, max_iter=2))
    assert any(hint in sentence for sentence in found)


def test_a_failing_condition_is_warned_of_without_strict():
    _, physics, y = measured("blur")
    found = alarms_of(lambda: lf.solvers.pgd(y, physics, GRAY, sigma=0.02, step_size=1.5, max_iter=2))
    assert any("step size: required 0 < eta < 1/||A||^2" in sentence for sentence in found)


def test_a_returned_start_is_noticed():
    found = alarms_of(lambda: lf.solvers.pgd(torch.zeros(1, 1, 8, 8), P.Denoising(), Unmoved(), max_iter=3))
    assert found == ("samples [0] came back as they started",)


class EveryOther:
    """Every other column, with an adjoint that knows one size."""

    def A(self, x):
        return x[..., ::2]

    def A_adjoint(self, y):
        x = torch.zeros(len(y), 1, 52, 52)
        x[..., ::2] = y
        return x


class Unmoved:
    def prox_and_prior(self, z, *, strength=1.0, sigma=None):
        return z, torch.zeros(len(z), dtype=torch.float64)


def test_a_misfit_far_from_one_is_noticed():
    _, physics, y = measured("blur")
    found = alarms_of(lambda: lf.solvers.pgd(y + 5 * (y > 0.5), physics, GRAY, sigma=0.02, noise=0.02, max_iter=3))
    assert any("misses the measurements of samples [0]" in sentence for sentence in found)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda y, a: lf.reconstruct(y, a, "natural-grey"), ValueError, "name must be one of"),
        (lambda y, a: lf.reconstruct(y, a, 3), TypeError, "model must be an LPN, the name of a shipped one"),
        (lambda y, a: lf.reconstruct(y.tolist(), a), TypeError, "y must be a tensor"),
        (lambda y, a: lf.reconstruct(y, a, noise=-1), ValueError, "noise must be at least 0"),
        (lambda y, a: lf.reconstruct(y, a, noise=torch.ones(3)), ValueError, "noise must be a number"),
        (lambda y, a: lf.reconstruct(y[0, 0], a), ValueError, "y must have"),
        (lambda y, a: lf.reconstruct(y[0], a), ValueError, r"add a batch axis with y\[None\]"),
        (lambda y, a: lf.reconstruct(y[0, 0], P.Blur.gaussian(1)), ValueError, r"axes with y\[None, None\]"),
        (lambda y, a: lf.reconstruct(y.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous(), P.Blur.gaussian(1)),
         ValueError, r"looks like \(N, H, W, C\); use y.permute\(0, 3, 1, 2\)"),
        (lambda y, a: lf.reconstruct(y.double(), a, GRAY, noise=1), TypeError, "y must be torch.float32"),
        (lambda y, a: lf.solvers.hqs(y.double(), a, GRAY, noise=1), TypeError, "y must be torch.float32"),
        (lambda y, a: lf.reconstruct((255 * y).byte(), a), TypeError, "y must be float32 or float64, got torch.uint8"),
        (lambda y, a: lf.reconstruct(y, a, noise="0.1"), TypeError, "noise must be a number or a tensor, got '0.1'"),
        (lambda y, a: lf.reconstruct(y, a, lf.pretrained("frame-color"), noise=1), ValueError, "N, 3, H, W"),
        (lambda y, a: lf.reconstruct(y[..., :52, :20], EveryOther()), ValueError, r"\(1, 1, 52, 20\) is refused by"),
        (lambda y, a: lf.solvers.pgd(y, a, "frame-gray"), TypeError, r"lf.pretrained\('frame-gray'\) loads"),
        (lambda y, a: lf.solvers.pgd(y, a, torch.nn.Conv2d(1, 1, 3)), TypeError, "a denoiser alone has no R"),
        (lambda y, a: lf.pretrained("natural_gray"), ValueError, "did you mean 'natural-gray'"),
        (lambda y, a: GRAY(y[0], sigma=0.1), ValueError, r"add a batch axis with x\[None\]"),
        (lambda y, a: GRAY(y.permute(0, 2, 3, 1), sigma=0.1), ValueError, r"x.permute\(0, 3, 1, 2\)"),
        (lambda y, a: lf.pretrained("frame-color")(torch.rand(8, 9, 3), sigma=0.1), ValueError,
         r"x.permute\(2, 0, 1\)\[None\]"),
        (lambda y, a: GRAY(y, sigma="0.1"), TypeError, "sigma must be a number or a tensor, got '0.1'"),
        (lambda y, a: lf.reconstruct(y, None), TypeError, "physics must have a method A"),
        (lambda y, a: lf.reconstruct(y, P.Blur), TypeError, r"the class Blur; make one, Blur\(...\)"),
        (lambda y, a: lf.reconstruct(y[0], scipy.sparse.eye(9)), TypeError, r"from_matrix\(physics, \(C, H, W\)\)"),
        (lambda y, a: lf.reconstruct(y.half(), a), TypeError, r"got torch.float16; convert with y.to\(torch.float32\)"),
        (lambda y, a: lf.reconstruct((255 * y).byte(), a), TypeError, r"8 bits use y.float\(\) / 255"),
        (lambda y, a: lf.reconstruct(y + 0j, a), TypeError, r"torch.view_as_real\(y\).movedim\(-1, -3\)"),
        (lambda y, a: lf.solvers.pgd(y.numpy(), a, GRAY), TypeError, r"use torch.from_numpy\(y\).float\(\)"),
        (lambda y, a: lf.reconstruct(y, a, noise=P.GaussianNoise(1)), TypeError, r"use physics.with_noise\(noise\)"),
        (lambda y, a: lf.solvers.pilot(y, a, lf.ConvLPN(1, hidden=8), noise=1), ValueError, "conditioned on the noise"),
    ],
)  # fmt: skip
def test_wrong_use_is_named(call, error, message):
    _, physics, y = measured("blur")
    with pytest.raises(error, match=message):
        call(y, physics)


def test_a_photograph_of_a_larger_scene_comes_back_sharper_and_without_frames():
    """The frame is cut out of a blurred scene; a circular model of it rings from border to border."""
    blur = P.Blur.gaussian(1.6, "valid")
    scene = torch.cat([disc(), disc().flip(-1), disc().flip(-2)], dim=-1)[..., 8:-8, 16:112]
    y = blur.A(scene) + 0.01 * randn(*blur.A(scene).shape).float()
    truth = blur.crop(scene)
    result = lf.reconstruct(y, blur, noise=0.01)
    wrapped = lf.reconstruct(y, P.Blur.gaussian(1.6, "circular"), noise=0.01)
    assert result.x.shape == y.shape and result.stages[-1].x.shape == scene.shape
    assert psnr(result.x, truth) > psnr(y, truth) + 2 and psnr(result.x, truth) > psnr(wrapped.x, truth) + 2
    rim = torch.ones_like(truth, dtype=torch.bool)
    rim[..., 4:-4, 4:-4] = False
    assert (result.x - truth)[rim].square().mean() < 3 * (result.x - truth)[~rim].square().mean()


@pytest.mark.parametrize("name", ["inpainting", "blur"])
def test_a_function_is_told_of_every_iteration_and_may_end_the_call(name):
    class Enough(Exception):
        pass

    _, physics, y = measured(name)
    told: list[int] = []
    result = lf.reconstruct(y, physics, noise=0.02, progress=told.append)
    assert told == list(range(1, len(told) + 1)) and len(told) > int(result.iterations.max())

    def stop(iterations: int) -> None:
        if iterations == len(told) - 1:
            raise Enough

    with pytest.raises(Enough):
        lf.reconstruct(y, physics, noise=0.02, progress=stop)


def textures():
    """A soft picture and one that is all texture, (2, 3, SIDE, SIDE)."""
    soft = blobs(SIDE, SIDE).float()
    rough = (0.5 + 0.2 * randn(1, 1, SIDE, SIDE, seed=5).float()).clamp(0, 1)
    return torch.cat((soft, rough)).repeat(1, 3, 1, 1)


def test_measurements_choose_the_weight_of_every_sample():
    x, physics = textures(), P.Blur.gaussian(1.0, boundary="full")
    y = physics.A(x) + 0.02 * randn(*physics.A(x).shape, seed=3).float()
    chosen = lf.reconstruct(y, physics, noise=0.02)
    assert "by a weight that the measurements chose" in chosen.stages[-1].note
    weak, strong = (lf.reconstruct(y, physics, noise=0.02, weight=w) for w in (0.5, 1.8))
    for n, better in enumerate((strong, weak)):
        assert torch.equal(chosen.x[n], better.x[n])
        worse = (weak, strong)[n]
        assert psnr(better.x, x)[n] > psnr(worse.x, x)[n]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("physics", [P.Blur.gaussian(1.0), P.Inpainting.random(SIDE, seen=0.3)], ids=["blur", "mask"])
def test_solvers_that_ask_for_the_prox_get_a_network_of_one_pass(physics, channels):
    explicit = [
        isinstance(lf.pretrained(name), lf.ExplicitLPN)
        for solver in ("pgd", "hqs", "gradient")
        for name in shipped_for(physics.with_noise(P.GaussianNoise(0.1)), channels, solver)
    ]
    assert explicit == [False, False, channels == 1 or not isinstance(physics, P.Blur)]


@pytest.mark.parametrize("few", [2**14, 100], ids=["few pixels", "many pixels"])
@pytest.mark.parametrize(("task", "weights"), [("denoise", GRADIENT_WEIGHTS), ("Deblurring()", MINIMISER_WEIGHTS)])
def test_a_priors_training_decides_between_which_weights_measurements_choose(task, weights, few, monkeypatch):
    x, physics, y = measured("blur")
    torch.manual_seed(0)
    prior, told = lf.ExplicitLPN(1, kernel=3, groups=4), []
    prior.card = {"task": task}

    def descent(*arguments, noise, **options):
        told.append(float(noise / 0.02) ** 2)
        return lf.solvers.gradient(*arguments, noise=noise, **options)

    monkeypatch.setattr("lpn_fast.restoration.gradient", descent)
    monkeypatch.setattr("lpn_fast.restoration.FEW", few)
    lf.reconstruct(y, physics, Choice(lf.pretrained("fast-gray"), prior, "a test"), noise=0.02)
    louder = 1 + SPLIT**2  # what is reconstructed from a part of the noise
    tried = (2 if few > 100 else 1) * [louder * weight for weight in weights]  # with a noise, and its negative
    assert told[:-1] == pytest.approx(tried)
    assert min(weights) - 1e-9 <= told[-1] <= max(weights) + 1e-9, "taken"


def test_a_weight_lies_where_the_risk_is_lowest_between_those_tried():
    places = torch.tensor([-0.7, -0.2, 0.2, 0.6], dtype=torch.float64)
    wanted = torch.tensor([0.05, -0.33, 0.31, 0.9, -1.0], dtype=torch.float64)  # two beyond what was tried
    risks = 3 + 2 * (places[:, None] - wanted).square()
    assert torch.allclose(_lowest(places, risks), wanted.clamp(-0.7, 0.6), atol=1e-12)
    assert torch.isin(_lowest(places, -risks), places).all(), "of risks without a bottom one that was tried"
    assert torch.equal(_lowest(places, torch.ones(4, 1).double()), places[:1]), "all alike"


def test_a_weight_that_is_given_is_taken():
    x, physics, y = measured("blur")
    kept = [float(lf.reconstruct(y, physics, GRAY, noise=0.02, weight=w).misfit) for w in (0.1, 0.3, 1.0)]
    assert kept[0] < kept[1] < kept[2]
    with pytest.raises(ValueError, match=r"weight must be positive, got 0"):
        lf.reconstruct(y, physics, GRAY, noise=0.02, weight=0)


@pytest.mark.parametrize(
    ("physics", "noise", "weight"),
    [
        (P.Inpainting.random(SIDE, seen=0.3), 0.05, 0.5),
        (P.Inpainting.random(SIDE, seen=0.3), 0.005, 1.0),
        (P.MRI.lines(SIDE, acceleration=4), 0.05, 0.5),  # real parts: neither a part of a transform, nor attenuated
        (P.ParallelBeamCT(SIDE, 24, 72, extent=68.0), 2.0, 0.125),
        (P.ParallelBeamCT(SIDE, 24, 72, extent=68.0), 0.05, 0.5),  # far below the lowest level of the network
    ],
)
def test_a_learned_prior_weighs_by_what_the_operator_does_to_noise(physics, noise, weight):
    y = physics.A(disc())
    level = torch.full((1,), noise, dtype=torch.float64)
    model = lf.pretrained("natural-gray")
    assert float(_usual_weight(checked_problem(y, physics), model, level)) == weight


def test_noisy_frequencies_are_not_fitted_to_their_noise():
    x, physics = disc(), P.MRI.lines(SIDE, acceleration=4)
    y = physics.A(x)
    y = y + 0.05 * randn(*y.shape, seed=3).float() * (physics.mask > 0)
    assert (
        psnr(lf.reconstruct(y, physics, noise=0.05).x, x)
        > psnr(lf.reconstruct(y, physics, GRAY, noise=0.05).x, x) - 0.5
    )


@pytest.mark.parametrize("views", [24, 60, 200])
@pytest.mark.parametrize("noise", [0.02, 2.0])
def test_noise_of_projections_is_found_however_few_the_views(views, noise):
    physics = P.ParallelBeamCT(SIDE, views, 72)
    x = disc()
    y = physics.A(x) + noise * randn(*physics.A(x).shape, seed=4).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = lf.reconstruct(y, physics)
        told = lf.reconstruct(y, physics, noise=noise)
    used = float((physics.A(found.x) - y).square().mean().sqrt() / found.misfit)
    assert noise / 1.6 < used < 1.6 * noise
    assert psnr(found.x, x) > psnr(told.x, x) - 1.5


def test_measurements_come_as_people_have_them():
    x = disc()
    mri = P.MRI.lines(SIDE, acceleration=2)
    complex_images = P.MRI(mri.mask, complex_images=True)
    spectrum = torch.fft.fft2(torch.complex(x, 0.1 * x), norm="ortho") * mri.mask.float()
    matrix = scipy.sparse.random(400, SIDE**2, 0.05, random_state=0, format="csr") * (1 + 1j)
    waves = P.from_matrix(matrix, (1, SIDE, SIDE))
    rows = torch.from_numpy(matrix @ x.flatten().double().numpy())[None].to(torch.complex64)
    blur, mask = P.Blur.gaussian(1.0), P.Inpainting(torch.ones(1, 1, SIDE, SIDE).tril())
    pairs = (
        (lambda y: lf.reconstruct(y, complex_images, noise=0.01), spectrum, complex_images.as_real(spectrum)),
        (lambda y: lf.reconstruct(y, waves, noise=0.01), rows, waves.as_real(rows)),
        (lambda y: lf.reconstruct(y, blur, noise=0.02), blur.A(x).numpy(), blur.A(x)),
        (lambda y: lf.reconstruct(y, mask, noise=torch.full((2, 1, 1, 1), 0.02)), mask.A(x.repeat(2, 3, 1, 1)).numpy(),
         mask.A(x.repeat(2, 3, 1, 1))),
    )  # fmt: skip
    for solve, as_they_are, as_tensors in pairs:
        assert torch.equal(solve(as_they_are).x, solve(as_tensors).x)
