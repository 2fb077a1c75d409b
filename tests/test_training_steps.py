"""One training step: averaging, clipping, rates, per-sample gammas, precision."""

import math

import pytest
import torch
from training_cases import interrupted_at, small_trainer, weights

import lpn_fast as lf
from lpn_fast.training import Phase, ProximalMatchingLoss, Trainer, accuracy, published_phases
from lpn_fast.training.laplacian import sample_laplace

pytestmark = pytest.mark.usefixtures("one_thread")


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


def random_squares(count, generator):
    return torch.rand(count, 1, 12, 12, generator=generator)


def test_scaled_steps_are_those_of_adam_with_scaled_rates():
    """A step that was clamped before it is scaled would fall short downwards: small weights would only ever grow."""

    def build():
        torch.manual_seed(0)
        return lf.FrameLPN(1, kernel=3)

    ours, theirs = build(), build()
    arguments = {"sigma": (0.05, 0.2), "batch_size": 4, "progress": False}
    trainer = Trainer(ours, random_squares, [Phase("l2", 8, 5e-2)], **arguments)
    reference = Trainer(theirs, random_squares, [Phase("l2", 8, 5e-2)], **arguments)
    scales = theirs.step_scales()
    groups = [{"params": [p], "scale": scales[name]} for name, p in theirs.named_parameters()]
    reference.optimizer = torch.optim.Adam(groups, lr=1.0)

    def step():
        for group in reference.optimizer.param_groups:
            group["lr"] *= group["scale"]
        reference.optimizer.step()

    reference._step_optimizer = step
    trainer.run(), reference.run()
    head, start = ours.stages[1].head, build().stages[1].head
    assert (head < start).any(), "some of the small weights fell"
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=1e-5 * scales[name]), name


def test_mixtures_are_trained_by_adam_in_logarithms():
    """Against torch's Adam on log-odds and log w themselves, through autograd."""

    def build():
        torch.manual_seed(0)
        model = lf.MixtureLPN(1, kernel=3, experts=6)
        model.stages[0].requires_grad_(False)
        return model

    ours, theirs, phase = build(), build(), Phase("l2", 6, 3e-2)
    arguments = {"sigma": (0.05, 0.2), "batch_size": 4, "progress": False}
    Trainer(ours, random_squares, [phase], **arguments).run()

    reference, last = Trainer(theirs, random_squares, [phase], **arguments), theirs.stages[1]
    with torch.no_grad():
        odds = torch.logit(last.core[:, 1:].double() * last.head.double() / theirs._budget)
        start = {
            "core": odds,
            "head": last.head.double().log(),
            "bias": last.bias.double(),
            "noise": last.noise.double(),
        }
    free = {name: t.clone().requires_grad_() for name, t in start.items()}
    scales = {name: theirs.step_scales()[f"stages.1.{name}"] for name in free}
    adam = torch.optim.Adam([{"params": [t]} for t in free.values()])

    def weights():
        w = free["head"].exp()
        core = torch.nn.functional.pad(theirs._budget / w * free["core"].sigmoid(), (0, 0, 0, 0, 1, 0))
        return {"core": core, "head": w, "bias": free["bias"], "noise": free["noise"]}

    for step in range(phase.steps):
        x, y, sigma = reference.batches.draw(reference.generator, last.core)
        named = {f"stages.1.{name}": t.float() for name, t in weights().items()}
        loss = reference._criterion(phase, y, sigma)(torch.func.functional_call(theirs, named, (y, sigma)), x)
        adam.zero_grad()
        loss.backward()
        for group, scale in zip(adam.param_groups, scales.values(), strict=True):
            group["lr"] = phase.rate(step) * scale
        adam.step()
    for name, t in weights().items():
        moved = getattr(ours.stages[1], name)
        assert torch.allclose(moved.double(), t, rtol=2e-3, atol=2e-3 * scales[name] * phase.learning_rate), name
    assert not torch.allclose(ours.stages[1].core, last.core, rtol=0.05), "they went somewhere"


def test_the_margin_of_a_crop_has_no_say():
    torch.manual_seed(0)
    model = lf.FrameLPN(1, kernel=3)
    arguments = {"sigma": (0.05, 0.2), "batch_size": 2, "progress": False}
    trainer = Trainer(model, random_squares, [Phase("l2", 1, 1e-3)], margin=3, **arguments)
    x = torch.rand(2, 1, 12, 12)
    spoiled = torch.nn.functional.pad(x[..., 3:-3, 3:-3], (3, 3, 3, 3), value=7.0)
    loss = trainer._criterion(trainer.phases[0], x, None)
    assert loss(trainer._inside(x), trainer._inside(spoiled)) == 0 != loss(x, spoiled)
    trainer.run()
    with pytest.raises(ValueError, match="zero for vectors, got 2"):
        small_trainer(margin=2)
    with pytest.raises(ValueError, match="got -1"):
        Trainer(model, random_squares, [Phase("l2", 1, 1e-3)], margin=-1, **arguments)


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
    assert used.count("bf16") == 5 and used[-1] == "fp32"  # the check's own and four steps; validation is exact


@pytest.mark.parametrize(
    "prox_error, gradient_error, holds",
    [
        (accuracy.PROX_LIMIT, accuracy.GRADIENT_LIMIT, True),
        (2 * accuracy.PROX_LIMIT, 0.0, False),
        (0.0, 2 * accuracy.GRADIENT_LIMIT, False),
        (math.nan, 0.0, False),
        (0.0, math.nan, False),
    ],
)
def test_the_gate_looks_at_prox_and_gradient(prox_error, gradient_error, holds):
    assert accuracy.AccuracyReport("bf16", prox_error, gradient_error).holds is holds


def test_every_phase_passes_the_gate_by_itself_and_keeps_its_verdict(tmp_path, monkeypatch):
    """A resumed run does not measure again: at other weights the answer, and so the run, might differ."""
    errors = iter([0.0, 1.0])  # the first phase passes, the second does not
    monkeypatch.setattr(
        accuracy, "measure", lambda model, precision, *_: accuracy.AccuracyReport(precision, 0.0, next(errors))
    )
    trainer, used = small_trainer(tmp_path, precision="bf16"), []
    trainer.model.register_forward_hook(lambda m, *_: used.append(m.precision))
    with pytest.raises(KeyboardInterrupt):
        interrupted_at(trainer, 65).run()
    assert used == ["bf16"] * 40 + ["fp32"] * 25
    resumed = small_trainer(tmp_path, precision="bf16")
    resumed.run()
    assert resumed.passed == {0: True, 1: False}


def test_the_gain_stays_below_its_limit_after_every_step():
    gains = {}
    for limit in (None, 0.9):
        torch.manual_seed(0)
        model = lf.ConvLPN(1, hidden=4, strides=(1, 2), squared_head=True)
        trainer = Trainer(
            model, lambda n, g: 3 * torch.rand(n, 1, 8, 8, generator=g), [Phase("l2", 5, 0.1)], sigma=0.1, batch_size=4,
            gain_limit=limit, progress=False,
        )  # fmt: skip
        gains[limit] = [(trainer.advance(), lf.asymptotic_gain(model))[1] for _ in range(5)]
    assert max(gains[0.9]) <= 0.9 * (1 + 1e-5) < max(gains[None])


def test_the_gate_refuses_what_is_too_coarse_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "PROX_LIMIT", 1e-7)
    trainer = small_trainer(tmp_path, precision="bf16")
    plain = small_trainer()
    trainer.run(), plain.run()
    assert torch.equal(weights(trainer), weights(plain))
    assert "bf16 is NOT used, fp32 is" in (tmp_path / "train.log").read_text()
    with pytest.raises(ValueError, match="precision must be one of"):
        small_trainer(precision="half")
