"""Training through minimisers: the implicit derivative against the unrolled solver, and a run with it."""

import pytest
import torch
from training_cases import interrupted_at

import lpn_fast as lf
from lpn_fast.training import Deblurring, Phase, Problems, Trainer, from_dict
from lpn_fast.training.equilibrium import STEP, equilibrium
from lpn_fast.training.problems import _fourier, _masked


def frame(dtype=torch.float32):
    torch.manual_seed(0)
    return lf.FrameLPN(1, kernel=3, gates=((1, 1, 12),)).to(dtype)


def smooth(count, generator, side=32, dtype=torch.float32):
    rough = torch.rand(count, 1, side // 4, side // 4, generator=generator, dtype=dtype)
    return torch.nn.functional.interpolate(rough, size=(side, side), mode="bilinear")


def gradients(model):
    """In all but the weights that are held non-negative: their rule at zero is not linear in what flows back."""
    free = [p for name, p in model.named_parameters() if not name.endswith(("core", "head"))]
    return torch.cat([p.grad.flatten() for p in free])


def test_implicit_gradient_is_that_of_the_unrolled_solver():
    model, generator = frame(torch.float64), torch.Generator().manual_seed(1)
    x = smooth(2, generator, side=20, dtype=torch.float64)
    kernels = torch.stack([lf.physics.gaussian_kernel(s, 7) for s in (0.8, 1.6)])
    physics, sigma = lf.physics.Blur(kernels), torch.tensor([0.05, 0.15], dtype=torch.float64)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64) * sigma.view(-1, 1, 1, 1)
    measured = physics.A(x) + noise
    out = equilibrium(model, physics, measured, measured, sigma, iterations=3000, inner=300, tol=1e-12)
    (out - x).square().sum().backward()
    implicit = gradients(model)

    model.zero_grad()
    z = out.detach()
    for _ in range(1500):  # from the minimiser, so that nothing but the derivative needs iterations
        z = model(z - STEP * physics.A_adjoint(physics.A(z) - measured), sigma)
    assert torch.allclose(z, out, atol=1e-8)
    (z - x).square().sum().backward()
    unrolled = gradients(model)
    assert (implicit - unrolled).norm() < 1e-4 * unrolled.norm()


def test_few_inner_steps_give_most_of_the_derivative():
    """What training uses, 12 steps, against 80; without any (the derivative of the last evaluation) it is far off."""
    x = smooth(3, torch.Generator().manual_seed(2), dtype=torch.float64)
    sigma = torch.tensor([0.02, 0.05, 0.1], dtype=torch.float64)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = {}
    for inner in (1, 12, 80):
        model = frame(torch.float64)
        problems = Deblurring(iterations=200, inner=inner)
        out, truth = problems(model, x, sigma.view(-1, 1, 1, 1) * noise, sigma, torch.Generator().manual_seed(4))
        assert torch.equal(truth, x[..., 7:-7, 7:-7])
        (out - truth).square().sum().backward()
        found[inner] = gradients(model)
    error = {inner: (found[inner] - found[80]).norm() / found[80].norm() for inner in (1, 12)}
    assert error[12] < 0.1 < error[1]


def test_derivative_of_explicit_minimisers_is_that_of_solving_again():
    torch.manual_seed(0)
    model = lf.ExplicitLPN(1, 3, 6, sigma_conditional=(0.1,)).double()
    generator = torch.Generator().manual_seed(1)
    x = smooth(2, generator, side=16, dtype=torch.float64)
    physics = lf.physics.Blur(torch.stack([lf.physics.gaussian_kernel(s, 7) for s in (0.8, 1.6)]))
    sigma = torch.tensor([0.05, 0.15], dtype=torch.float64)
    measured = physics.A(x) + torch.randn(x.shape, generator=generator, dtype=torch.float64) * sigma.view(-1, 1, 1, 1)

    def loss():
        out = equilibrium(model, physics, measured, measured, sigma, iterations=2000, inner=300, tol=1e-13)
        return (out - x).square().sum()

    loss().backward()
    parameters = list(model.parameters())
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    implicit = sum((p.grad * d).sum() for p, d in zip(parameters, direction, strict=True))
    ends = []
    with torch.no_grad():
        for length in (1e-4, -2e-4):
            for p, d in zip(parameters, direction, strict=True):
                p.add_(length * d)
            ends.append(loss())
    assert torch.isclose(implicit, (ends[0] - ends[1]) / 2e-4, rtol=1e-4)


def deblurring_trainer(out, steps=12, **arguments):
    options = {"sigma": (0.02, 0.1), "batch_size": 4, "margin": 2, "out": out, "progress": False} | arguments
    phases = [Phase("log", steps, 5e-3)]
    return Trainer(frame(), smooth, phases, problems=Deblurring(iterations=15, inner=4), **options)


def test_a_run_improves_minimisers_and_resumes_bit_for_bit(tmp_path):
    def error(model):
        x = smooth(8, torch.Generator().manual_seed(7))
        physics = lf.physics.Blur.gaussian(1.2)
        y = physics.A(x) + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(8))
        return (lf.solvers.fista(y, physics, model, noise=0.05, sigma=0.05, strength=1.0).x - x).square().mean()

    whole = deblurring_trainer(tmp_path / "whole", 40)
    before = error(whole.model)
    whole.run()
    assert error(whole.model) < 0.9 * before
    parts = deblurring_trainer(tmp_path / "parts", 40, checkpoint_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        interrupted_at(parts, 17).run()
    resumed = deblurring_trainer(tmp_path / "parts", 40)
    resumed.run()
    assert torch.equal(resumed.model.packed(), whole.model.packed())


def test_denoising_among_problems_is_f_itself():
    x, noise, sigma = (
        smooth(2, torch.Generator().manual_seed(3)),
        torch.full((2, 1, 32, 32), 0.1),
        torch.full((2,), 0.1),
    )
    model = frame()
    out, truth = Problems(("denoise",))(model, x, noise, sigma, torch.Generator())
    assert torch.equal(out, model(x + noise, sigma)) and truth is x


@pytest.mark.parametrize("kind", ["inpaint", "fourier"])
@pytest.mark.parametrize("explicit", [False, True])
def test_minimisers_of_other_operators_are_stationary(kind, explicit, monkeypatch):
    torch.manual_seed(0)
    model = (lf.ExplicitLPN(1, 3, 6, sigma_conditional=(0.1,)) if explicit else frame()).double()
    x = smooth(3, torch.Generator().manual_seed(5), dtype=torch.float64)
    sigma = torch.tensor([0.02, 0.05, 0.1], dtype=torch.float64)
    noise = sigma.view(-1, 1, 1, 1) * torch.randn(x.shape, generator=torch.Generator().manual_seed(6)).double()
    seen = {}

    def kept(model, physics, measured, start, sigma, *rest):
        seen.update(physics=physics, measured=measured, start=start, sigma=sigma)
        return equilibrium(model, physics, measured, start, sigma, *rest, tol=1e-10)

    monkeypatch.setattr("lpn_fast.training.problems.equilibrium", kept)
    problems = Problems((kind,), 1.0, Deblurring(iterations=3000, inner=4))
    out, truth = problems(model, x, noise, sigma, torch.Generator().manual_seed(7))
    physics, told, out = seen["physics"], seen["sigma"], out.detach()
    assert torch.equal(truth, x) and (seen["start"] - x).norm() < 0.5 * x.norm()
    u = out - STEP * physics.A_adjoint(physics.A(out) - seen["measured"])
    moved = model.grad_prior(out, told) + out - u if explicit else model(u, told) - out
    assert moved.norm() < 1e-5 * out.norm()
    assert physics.norm() <= 1
    again, _ = problems(model, x, noise, sigma, torch.Generator().manual_seed(7))
    assert torch.equal(again.detach(), out)


def test_minimisers_are_told_half_of_their_noise_and_never_less_than_the_lowest_level(monkeypatch):
    x, sigma = smooth(2, torch.Generator().manual_seed(5), side=64), torch.tensor([0.015, 0.1])
    noise = sigma.view(-1, 1, 1, 1) * torch.randn(x.shape, generator=torch.Generator().manual_seed(6))
    model, seen = lf.ExplicitLPN(1, 3, 6, sigma_conditional=(0.01, 0.1)), {}

    def told(model, physics, measured, start, level, *rest):
        left, size = (t.flatten(1).norm(dim=1).float() for t in (measured - physics.A(x), physics.mask))
        seen.update(level=level, left=left / size)
        return start

    monkeypatch.setattr("lpn_fast.training.problems.equilibrium", told)
    Problems(("inpaint",))(model, x, noise, sigma, torch.Generator().manual_seed(7))
    assert torch.allclose(seen["level"], torch.tensor([0.01, 0.05]))
    assert torch.allclose(seen["left"], 2 * seen["level"] / STEP**0.5, rtol=0.1)


def test_measurements_have_the_noise_of_their_level_where_they_are_seen():
    x = smooth(4, torch.Generator().manual_seed(5), side=64)
    noise = 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(6))
    for draw, low, high in ((_masked, 0.15, 0.85), (_fourier, 0.18, 0.52)):
        physics, measured = draw(x, noise, torch.Generator().manual_seed(7))
        mask = physics.mask if draw is _masked else physics.mask[:, None, None]
        seen = (mask > 0).expand(measured.shape)
        shares = seen.flatten(1).float().mean(1)
        assert ((low < shares) & (shares < high)).all() and len(set(shares.tolist())) > 2
        left = measured - physics.A(x)
        assert (left[~seen] == 0).all() and 0.09 < float(left[seen].square().mean().sqrt()) < 0.11


def test_kinds_take_turns_and_unknown_ones_are_refused(monkeypatch):
    kinds, x = Problems(("denoise", "inpaint", "inpaint")), smooth(1, torch.Generator().manual_seed(5))
    monkeypatch.setattr("lpn_fast.training.problems.equilibrium", lambda model, physics, *rest: "minimiser")
    generator, model = torch.Generator().manual_seed(0), lambda y, sigma: "f"
    drawn = [kinds(model, x, 0 * x, None, generator)[0] for _ in range(90)]
    assert 40 < drawn.count("minimiser") < 80 and drawn.count("f") == 90 - drawn.count("minimiser")
    with pytest.raises(ValueError, match="kinds must be some of denoise, deblur, inpaint, fourier, got ct"):
        Problems(("denoise", "ct"))
    with pytest.raises(ValueError, match="got none"):
        Problems(())
    with pytest.raises(ValueError, match="trust must be positive, got 0"):
        Problems(trust=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"blur": (2.0, 1.0)}, "blur must be an increasing pair of positive widths"),
        ({"shakes": 1.5}, r"shakes must lie in \[0, 1\], got 1.5"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"inner": -1}, "inner must be at least 1, got -1"),
    ],
)
def test_problems_say_what_is_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        Deblurring(**wrong)


@pytest.mark.parametrize(("side", "largest"), [(29, 15), (32, 15), (33, 17), (52, 25), (53, 27), (80, 27)])
def test_kernels_are_as_large_as_recorded_ones_where_crops_allow(side, largest):
    x, generator = smooth(2, torch.Generator().manual_seed(6), side=side), torch.Generator().manual_seed(7)
    drawn = []

    class Noted(Deblurring):
        def _kernel(self, largest, generator):
            drawn.append(super()._kernel(largest, generator))
            return drawn[-1]

    _, truth = Noted(iterations=1, inner=1)(frame(), x, torch.zeros_like(x), torch.tensor([0.05, 0.05]), generator)
    rim = largest // 2
    assert {k.shape for k in drawn} == {(largest, largest)} and min(truth.shape[2:]) >= largest
    assert torch.equal(truth, x[..., rim:-rim, rim:-rim])


def test_kernels_are_gaussians_and_shakes_of_all_sides_in_the_middle_of_the_largest():
    generator = torch.Generator().manual_seed(5)
    kernels = torch.stack([Deblurring()._kernel(15, generator) for _ in range(200)])
    assert kernels.shape == (200, 15, 15) and (kernels >= 0).all()
    assert torch.allclose(kernels.sum((1, 2)), torch.ones(200, dtype=torch.float64))
    symmetric = (kernels - kernels.flip(1, 2)).abs().amax((1, 2)) < 1e-12
    assert 60 < symmetric.sum() < 140
    sides = {15 - 2 * min(int(k.sum(d).nonzero()[0]) for d in (0, 1)) for k in kernels[symmetric]}
    assert sides == {5, 7, 9, 11, 13, 15}
    only = Deblurring(shakes=0.0)
    assert all(torch.allclose(k, k.flip(0)) for k in (only._kernel(15, generator) for _ in range(20)))


def test_trainer_says_what_does_not_go_with_problems():
    with pytest.raises(ValueError, match=r"crops must be at least 29 x 29 for deblurring, got \(4, 1, 28, 28\)"):
        Trainer(
            frame(), lambda n, g: smooth(n, g, side=28), [Phase("log", 1, 1e-3)], sigma=(0.02, 0.1), batch_size=4,
            problems=Deblurring(), progress=False,
        ).run()  # fmt: skip
    with pytest.raises(ValueError, match="expansion_weight=0 and precision='fp32'"):
        deblurring_trainer(None, expansion_weight=0.1)
    with pytest.raises(ValueError, match="problems are for image models"):
        dense = lf.MLPLPN(dim=2, hidden=4, layers=1)
        Trainer(dense, torch.randn, [Phase("log", 1, 1e-3)], sigma=0.1, batch_size=2, problems=Deblurring())
    with pytest.raises(ValueError, match="task must be one of"):
        from_dict({"out": "x", "sigma": 0.1, "data": {"synthetic": "dead-leaves"}, "task": "deblurr"})
