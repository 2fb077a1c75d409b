"""The wrong uses that people make, at every entrance: an error or a warning that says what to write instead."""

import warnings

import pytest
import torch

import lpn_fast as lf

GRAY = lf.pretrained("frame-gray")
BLUR = lf.physics.Blur.gaussian(1.0)
RAMP = torch.linspace(0.2, 0.8, 20).expand(2, 1, 20, 20).contiguous()  # (N, C, H, W), as it should be
COLOUR = RAMP.expand(-1, 3, -1, -1)
NOISE = 0.05


def denoiser(x, sigma=0.1):
    pytest.importorskip("deepinv", reason="deepinv is not installed")
    from lpn_fast.interop.deepinv import LPNDenoiser

    return LPNDenoiser(GRAY)(x, sigma=sigma)


ENTRANCES = {  # each takes images, or measurements of their shape
    "model": lambda x: GRAY(x, sigma=0.1),
    "reconstruct": lambda x: lf.reconstruct(x, BLUR, GRAY, noise=NOISE),
    "solver": lambda x: lf.solvers.pgd(x, BLUR, GRAY, noise=NOISE, max_iter=2),
    "prior": lambda x: lf.prior(GRAY, x, sigma=0.1, max_iter=2),
    "invert": lambda x: lf.invert(GRAY, x, sigma=0.1, max_iter=2),
    "verify": lambda x: lf.verify(GRAY, x, sigma=0.1),
    "envelope": lambda x: lf.moreau_envelope(GRAY, x, sigma=0.1),
    "explicit": lambda x: lf.ExplicitLPN(1, kernel=4, groups=8)(x, sigma=0.1),
    "denoiser": denoiser,
    "blur": BLUR.A,
    "inpainting": lf.physics.Inpainting.random(20, seen=0.5).A,
    "downsampling": lf.physics.Downsampling.average(2).A,
}
OPERATORS = ("blur", "inpainting", "downsampling")  # know nothing of intensities, and take any number of channels
WITHOUT_TRAINING = (*OPERATORS, "explicit")
ANY_CHANNELS = (*OPERATORS, "reconstruct", "solver", "denoiser")  # a gray network is applied to each of them
NAN = RAMP.clone().index_fill_(0, torch.tensor([1]), float("nan"))

# name -> (images, kind, message, entrances where that is no mistake)
IMAGES = {
    "numpy": (RAMP.numpy(), TypeError, r"use torch.from_numpy\(\w+\).float\(\)", ("reconstruct",)),
    "numpy of bytes": ((255 * RAMP).byte().numpy(), TypeError, r"use .*\w+\)?.float\(\) / 255", ()),
    "uint8": ((255 * RAMP).byte(), TypeError, r"8 bits use \w+.float\(\) / 255", ()),
    "float16": (RAMP.half(), TypeError, r"convert with \w+.to\(torch.float32\)", ()),
    "float64": (RAMP.double(), TypeError, r"convert with \w+.to\(torch.float32\)", (*OPERATORS, "verify")),
    "channels last": (COLOUR.permute(0, 2, 3, 1).contiguous(), ValueError, "permute", ()),
    "a picture, channels last": (RAMP[0, 0, :, :, None], ValueError, r"permute\(2, 0, 1\)\[None\]", ()),
    "no batch": (RAMP[0], ValueError, r"add a batch axis with \w+\[None\]", ()),
    "no channel": (RAMP.repeat(3, 1, 1, 1)[:, 0], ValueError,
                   r"a channel axis with \w+\[:, None\]", ()),
    "neither": (RAMP[0, 0], ValueError, r"batch and channel axes with \w+\[None, None\]", ()),
    "wrong channels": (COLOUR, ValueError, r"flatten\(0, 1\)\[:, None\]", ANY_CHANNELS),
    "empty": (RAMP[:0], ValueError, r"at least one sample|not be empty",
              (*OPERATORS, "model", "prior", "invert", "envelope", "explicit", "denoiser")),  # none in, none out
    "NaN": (NAN, (ValueError, RuntimeWarning), "NaN", (*OPERATORS, "envelope", "explicit")),
    "0..255": (255 * RAMP, RuntimeWarning, r"images in \[0, 1\]: divide [xy] by", (*WITHOUT_TRAINING, "envelope")),
}  # fmt: skip


def complaint(call, *arguments):
    """The error or the warnings of a call, as (types, text)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call(*arguments)
        except (TypeError, ValueError, FileNotFoundError) as error:
            return [(type(error), str(error))]
    return [(entry.category, str(entry.message)) for entry in caught]


def assert_complains(found, kind, message):
    import re

    assert any(issubclass(category, kind) and re.search(message, text) for category, text in found), found


CASES = [(name, entrance) for name, (_, _, _, fine) in IMAGES.items() for entrance in ENTRANCES if entrance not in fine]


@pytest.mark.parametrize("name, entrance", CASES, ids=lambda text: text)
def test_images_in_another_form(name, entrance):
    images, kind, message, _ = IMAGES[name]
    assert_complains(complaint(ENTRANCES[entrance], images), kind, message)


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_images_as_they_should_be_are_taken_without_a_word(entrance):
    assert complaint(ENTRANCES[entrance], BLUR.A(RAMP) + NOISE * torch.randn(RAMP.shape)) == []


LEVELS = {  # each takes a noise level
    "model": lambda s: GRAY(RAMP, sigma=s),
    "prior": lambda s: lf.prior(GRAY, RAMP, sigma=s, max_iter=2),
    "invert": lambda s: lf.invert(GRAY, RAMP, sigma=s, max_iter=2),
    "verify": lambda s: lf.verify(GRAY, RAMP, sigma=s),
    "solver": lambda s: lf.solvers.pgd(RAMP, BLUR, GRAY, sigma=s, strength=1.0, max_iter=2),
    "denoiser": lambda s: denoiser(RAMP, s),
}


@pytest.mark.parametrize("entrance", LEVELS)
def test_a_noise_level_of_25(entrance):
    assert_complains(complaint(LEVELS[entrance], 25), RuntimeWarning, "divide by 255: 25/255 = 0.098")


OTHERS = {
    "model, sigma": (lambda: GRAY(RAMP, sigma="0.1"), TypeError, "sigma must be a number or a tensor, got '0.1'"),
    "prior, sigma": (lambda: lf.prior(GRAY, RAMP, sigma="0.1"), TypeError, "sigma must be a number"),
    "verify, sigma": (lambda: lf.verify(GRAY, RAMP, sigma="0.1"), TypeError, "sigma must be a number"),
    "prox, strength": (lambda: GRAY.prox(RAMP, "0.5", sigma=0.1), TypeError, "strength must be a number"),
    "reconstruct, noise": (lambda: lf.reconstruct(RAMP, BLUR, noise="0.1"), TypeError, "noise must be a number"),
    "solver, strength": (lambda: lf.solvers.pgd(RAMP, BLUR, GRAY, strength=[0.5]), TypeError, "must be a number"),
    "blur, sigma": (lambda: lf.physics.Blur.gaussian("1.6"), TypeError, "sigma must be a number or a tensor, got"),
    "noise model": (lambda: lf.physics.GaussianNoise("0.1"), TypeError, "sigma must be a number"),
    "noise of 25": (lambda: lf.reconstruct(RAMP + 0.05 * torch.randn(RAMP.shape), BLUR, noise=25), RuntimeWarning,
                    "noise = 25 is more than 3 times off"),
    "model misspelt": (lambda: lf.pretrained("natural_grey"), ValueError, "did you mean 'natural-gray'"),
    "model by name": (lambda: lf.reconstruct(RAMP, BLUR, "natural-grey", noise=1), ValueError, "did you mean"),
    "name for a file": (lambda: lf.load("frame-gray"), FileNotFoundError, r"lf.pretrained\('frame-gray'\)"),
    "name for a model": (lambda: lf.prior("ct", RAMP), TypeError, r"lf.pretrained\('ct'\) loads"),
    "name for a map": (lambda: lf.verify("ct", RAMP), TypeError, r"lf.pretrained\('ct'\) loads"),
    "boundary": (lambda: lf.physics.Blur.gaussian(1.0, "relfective"), ValueError, "did you mean 'reflective'"),
    "method": (lambda: lf.invert(GRAY, RAMP, sigma=0.1, method="lbgfs"), ValueError, "did you mean 'lbfgs'"),
    "backend": (lambda: lf.use_backend("tritn"), ValueError, "did you mean 'triton'"),
    "precision": (lambda: setattr(GRAY, "precision", "fp61"), ValueError, "did you mean 'fp16'"),
    "published": (lambda: lf.paper_network("minst"), ValueError, "did you mean 'mnist'"),
    "kernel's sum": (lambda: lf.physics.Blur(torch.ones(3, 3)), UserWarning, r"sums to 9, not 1.*kernel / kernel.sum"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_numbers_and_names(name):
    call, kind, message = OTHERS[name]
    assert_complains(complaint(call), kind, message)


def test_a_file_misspelt(tmp_path):
    lf.save(lf.MLPLPN(3), tmp_path / "model.safetensors")
    found = complaint(lf.load, tmp_path / "modle.safetensors")
    assert_complains(found, FileNotFoundError, "did you mean 'model.safetensors'")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu(tmp_path):
    path = lf.save(lf.MLPLPN(3), tmp_path / "model.safetensors")
    for call in (lambda: lf.pretrained("ct", "cuda"), lambda: lf.load(path, "cuda:0")):
        assert_complains(complaint(call), ValueError, "device 'cuda.*' cannot be used: .*; use device='cpu'")


def test_a_call_inside_torch_func_is_not_looked_into():
    per_sample = torch.vmap(lambda x: GRAY(x[None], sigma=25.0)[0])(255 * RAMP)
    assert per_sample.shape == RAMP.shape
