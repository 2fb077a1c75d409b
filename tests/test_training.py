"""Losses, schedule, and a trainer that can be stopped at any moment."""

import math

import pytest
import torch
from tables import rows_of
from training_cases import PHASES, small_trainer

import lpn_fast as lf
from lpn_fast.data import ImageCrops, validation_batch
from lpn_fast.training import Phase, ProximalMatchingLoss, l1_loss, l2_loss, published_phases
from lpn_fast.training.denoiser import train_denoiser
from lpn_fast.training.laplacian import sample_laplace
from lpn_fast.training.schedule import locate

pytestmark = pytest.mark.usefixtures("one_thread")


def test_proximal_matching_is_its_formula_and_saturates():
    pred, target = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    distance = (pred - target).norm(dim=1)
    expected = (1 - torch.exp(-((distance / 1.7) ** 2))).mean()
    assert torch.allclose(ProximalMatchingLoss(1.7)(pred, target), expected)
    assert ProximalMatchingLoss(1e-3)(pred, target) == 1.0
    assert torch.allclose(1e6 * ProximalMatchingLoss(1e3)(pred, target), distance.square().mean(), rtol=1e-4)


def test_distances_are_summed_in_float32_for_half_inputs():
    pred, target = torch.full((2, 3, 128, 128), 0.5), torch.zeros(2, 3, 128, 128)
    for loss in (ProximalMatchingLoss(150.0), l1_loss, l2_loss):
        assert torch.allclose(loss(pred.half(), target.half()), loss(pred, target), rtol=1e-6)


def test_published_schedule_halves_gamma_to_its_floor():
    phases = published_phases(entries=64 * 64, steps=4000)
    assert [phase.loss for phase in phases] == ["l1", *["matching"] * 4]
    gammas = [phase.gamma for phase in phases[1:]]
    assert math.isclose(gammas[-1], 0.08 * 64) and gammas == [gammas[-1] * 2**k for k in (3, 2, 1, 0)]
    assert sum(phase.steps for phase in phases) == 4000
    assert locate(phases, 1999) == (0, 1999) and locate(phases, 2000) == (1, 0)


def test_cosine_rate_starts_and_ends_where_it_should():
    phase = Phase("l2", 100, 1e-2, 1e-4)
    assert phase.rate(0) == pytest.approx(1e-2) and phase.rate(99) == pytest.approx(1e-4, rel=0.05)
    assert Phase("l2", 100, 1e-2).rate(57) == 1e-2


def test_laplace_samples_have_the_moments_of_laplace():
    x = sample_laplace(200_000, torch.Generator().manual_seed(0))
    assert abs(x.mean()) < 0.01 and abs(x.abs().mean() - 1) < 0.01 and abs(x.var() - 2) < 0.04


def test_training_lowers_the_loss_and_keeps_weights_non_negative():
    trainer = small_trainer(phases=[Phase("l2", 300, 1e-2)])
    x = sample_laplace(4000, torch.Generator().manual_seed(9))
    y = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(10))
    before = l2_loss(trainer.model(y), x).item()
    trainer.run()
    assert l2_loss(trainer.model(y), x).item() < 0.5 * before
    assert all((p >= 0).all() for n, p in trainer.model.named_parameters() if n.endswith(("core", "head")))


class Source:
    """A sampler that names its data."""

    def __init__(self, fingerprint):
        self.fingerprint = fingerprint

    def __call__(self, count, generator):
        return sample_laplace(count, generator)


def test_resume_refuses_another_configuration_and_a_broken_file(tmp_path):
    small_trainer(tmp_path, sampler=Source("a")).run()
    for name, other in (
        ("seed", {"seed": 1}),
        ("schedule", {"phases": PHASES[:1]}),
        ("clip_norm", {"clip_norm": 1.0}),
        ("data", {"sampler": Source("b")}),
    ):
        with pytest.raises(ValueError, match=f"belongs to a run with another {name}; choose another folder"):
            small_trainer(tmp_path, **({"sampler": Source("a")} | other)).run()
    (tmp_path / "resume.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="not a readable resume file"):
        small_trainer(tmp_path).run()


def test_log_has_one_row_per_validation(tmp_path):
    small_trainer(tmp_path, validate=lambda model: {"figure": 1.5}, validate_every=10).run()
    rows = rows_of(tmp_path / "log.csv")
    assert [int(row["step"]) for row in rows] == [10, 20, 30, 40, 50, 60, 70] and rows[0]["figure"] == "1.5"


def test_crops_come_from_the_images_and_the_generator(photographs):
    crops = ImageCrops([photographs], crop=16, channels=3, exclude=["1"])
    assert len(crops) == 2
    a, b = (crops(5, torch.Generator().manual_seed(4)) for _ in range(2))
    assert a.shape == (5, 3, 16, 16) and torch.equal(a, b) and 0 <= a.min() and a.max() <= 1
    assert ImageCrops([photographs], crop=16)(2, torch.Generator()).shape == (2, 1, 16, 16)
    assert validation_batch([photographs], side=32).shape == (3, 1, 32, 32)


def test_a_conditional_denoiser_trains_and_fills_its_card(photographs, tmp_path):
    torch.manual_seed(0)
    model = lf.ConvLPN(1, hidden=8, sigma_conditional=True)
    model = train_denoiser(
        model,
        ImageCrops([photographs], crop=16),
        [Phase("l2", 60, 5e-3, 1e-4)],
        sigma=(0.05, 0.2),
        out=tmp_path / "out",
        batch_size=8,
        validation=validation_batch([photographs], side=32),
        data_description="three random surfaces",
        progress=False,
    )
    noisy = 10 * math.log10(1 / 0.2**2)
    assert model.card["result"]["psnr@0.2"] > noisy + 2
    assert lf.load(tmp_path / "out" / "model.safetensors").card == model.card
    assert "three random surfaces" in (tmp_path / "out" / "card.md").read_text()
