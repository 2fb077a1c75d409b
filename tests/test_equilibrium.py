"""Training through minimisers: the implicit derivative against the unrolled solver, and a run with it."""

import pytest
import torch
from training_cases import interrupted_at

import lpn_fast as lf
from lpn_fast.training import Deblurring, Phase, Trainer, from_dict
from lpn_fast.training.equilibrium import STEP, equilibrium


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


def test_kernels_are_gaussians_and_shakes_of_all_sides_in_the_middle_of_the_largest():
    generator = torch.Generator().manual_seed(5)
    kernels = torch.stack([Deblurring()._kernel(generator) for _ in range(200)])
    assert kernels.shape == (200, 15, 15) and (kernels >= 0).all()
    assert torch.allclose(kernels.sum((1, 2)), torch.ones(200, dtype=torch.float64))
    symmetric = (kernels - kernels.flip(1, 2)).abs().amax((1, 2)) < 1e-12
    assert 60 < symmetric.sum() < 140
    sides = {15 - 2 * min(int(k.sum(d).nonzero()[0]) for d in (0, 1)) for k in kernels[symmetric]}
    assert sides == {5, 7, 9, 11, 13, 15}
    only = Deblurring(shakes=0.0)
    assert all(torch.allclose(k, k.flip(0)) for k in (only._kernel(generator) for _ in range(20)))


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
