"""Bad input gets one line that names the argument, the value seen and the value required."""

import pytest
import torch

import lpn_fast as lf
from lpn_fast.algebra.spec import Spec, Stage
from lpn_fast.data import ImageCrops
from lpn_fast.training import Phase, Trainer, published_phases

DENSE = lf.MLPLPN(3, hidden=4, layers=1)
CONV = lf.ConvLPN(1, hidden=4)
CONDITIONAL = lf.ConvLPN(1, hidden=4, sigma_conditional=True)
IMAGE = torch.rand(2, 1, 8, 8)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: DENSE(torch.zeros(5, 4)), ValueError, r"x must have shape \(N, 3\), got \(5, 4\)"),
        (lambda: DENSE(torch.zeros(3)), ValueError, r"add a batch axis with x\[None\]"),
        (lambda: CONV(torch.zeros(1, 8, 8)), ValueError, r"\(N, 1, H, W\), got \(1, 8, 8\); add a batch axis"),
        (lambda: CONV(torch.zeros(2, 3, 8, 8)), ValueError, r"\(N, 1, H, W\), got \(2, 3, 8, 8\)"),
        (lambda: CONV(IMAGE.double()), TypeError, "dtype torch.float32, got torch.float64"),
        (lambda: CONV(IMAGE.to(torch.uint8)), TypeError, "got torch.uint8"),
        (lambda: CONV(IMAGE.numpy()), TypeError, "must be a tensor, got ndarray"),
        (lambda: CONV(IMAGE.to("meta")), ValueError, "x is on meta, the model on cpu"),
        (lambda: CONV(IMAGE, sigma=0.1), ValueError, "sigma must be None"),
        (lambda: CONDITIONAL(IMAGE), ValueError, "sigma must be given"),
        (lambda: CONDITIONAL(IMAGE, sigma=0.0), ValueError, "sigma must be positive, got 0.0"),
        (lambda: CONDITIONAL(IMAGE, sigma=-1), ValueError, "sigma must be positive, got -1"),
        (lambda: CONDITIONAL(IMAGE, sigma=float("nan")), ValueError, "sigma must be positive, got nan"),
        (lambda: CONDITIONAL(IMAGE, sigma=torch.tensor([0.1, -1.0])), ValueError, r"positive, got \[0.1.*, -1.0\]"),
        (lambda: CONDITIONAL(IMAGE, sigma=torch.ones(3)), ValueError, r"shape \(\) or \(2,\), got \(3,\)"),
        (lambda: CONV.hvp(IMAGE, IMAGE[:1]), ValueError, r"v must match x.*got \(\(1, 1, 8, 8\)"),
        (lambda: lf.paper_network("mnist")(IMAGE), ValueError, r"images of \(28, 28\) pixels, got \(8, 8\)"),
        (lambda: lf.paper_network("imagenet"), ValueError, "must be one of.*'imagenet'"),
        (lambda: lf.MLPLPN(0), ValueError, r"channels \(dim\) must be at least 1, got 0"),
        (lambda: lf.MLPLPN(1, beta=0.0), ValueError, "beta must be positive, got 0.0"),
        (lambda: lf.MLPLPN(1, alpha=-1.0), ValueError, "alpha must be zero or positive, got -1.0"),
        (lambda: lf.ConvLPN(1, strides=(1, 3)), ValueError, r"strides.*got \(1, 3\)"),
        (lambda: lf.ConvLPN(1, kernel=4), ValueError, "kernel must be odd and between 1 and 9, got 4"),
        (lambda: lf.ConvLPN(1, heads="first"), ValueError, "heads must be 'last' or 'all', got 'first'"),
        (lambda: lf.ConvLPN(1, sigma_conditional=(0.2, 0.1)), ValueError, "positive and increasing"),
        (lambda: Spec("conv", 1, (Stage(4),), 1.0), ValueError, "no stage has a head"),
        (lambda: lf.ProximalMatchingLoss(0.0), ValueError, "gamma must be positive, got 0.0"),
        (lambda: lf.ProximalMatchingLoss(1.0)(IMAGE, IMAGE[:1]), ValueError, "one shape"),
        (lambda: Phase("huber", 1, 1e-3), ValueError, "'huber'"),
        (lambda: Phase("matching", 1, 1e-3), ValueError, "gamma belongs to loss='matching'"),
        (lambda: Phase("l2", 0, 1e-3), ValueError, "steps must be at least 1, got 0"),
        (lambda: Phase("l2", 1, -1e-3), ValueError, "learning_rate must be positive, got -0.001"),
        (lambda: Trainer(CONV, None, [], sigma=0.1, batch_size=1), ValueError, "phases"),
        (lambda: Trainer(CONV, None, published_phases(64), sigma=-0.1, batch_size=1), ValueError, "sigma.*-0.1"),
        (lambda: Trainer(CONV, None, published_phases(64), sigma=(0.1, 0.2), batch_size=1), ValueError, "one number"),
        (lambda: ImageCrops(["nowhere"]), FileNotFoundError, "no file or folder nowhere"),
        (lambda: ImageCrops(["nowhere"], channels=2), ValueError, "channels must be 1"),
    ],
)  # fmt: skip
def test_message_names_argument_value_and_wish(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_unreadable_and_small_training_images_are_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="broken.png: cannot identify an image"):
        ImageCrops([tmp_path])
    from PIL import Image

    (tmp_path / "broken.png").unlink()
    Image.new("L", (20, 30)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"small.png is \(30, 20\) pixels, smaller than the crop of 64"):
        ImageCrops([tmp_path])
    with pytest.raises(ValueError, match="no images"):
        ImageCrops([tmp_path], exclude=["small"])
