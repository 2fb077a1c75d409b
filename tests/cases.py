"""What the tests share: one small network of every kind, tolerances, and the truth in float64."""

import contextlib
import signal

import pytest
import torch

import lpn_fast as lf
from lpn_fast.algebra.parameters import layout
from lpn_fast.algebra.spec import Spec, Stage
from lpn_fast.networks import frame, mixture

# Relative L2 errors against float64 (the algebra is exact, so these are rounding bounds).
TOLERANCE = {
    torch.float64: {"prox": 1e-12, "second_order": 1e-12, "symmetry": 1e-12},
    torch.float32: {"prox": 1e-5, "second_order": 1e-5, "symmetry": 1e-6},
}


def dense_heads() -> lf.LPN:
    """Heads on several stages, squared ones, a stage without skip, a quadratic term, noise-dependent biases."""
    stages = (
        Stage(4, heads=("squared",)),
        Stage(6, kernel=1, skip_kernel=0, bias=False),
        Stage(5, kernel=1, heads=("linear", "squared")),
    )
    return lf.LPN(Spec("dense", 2, stages, 5.0, 0.1, True, True, quadratic=3, noise_levels=(0.1, 0.2, 0.4)))


def conv_mixed() -> lf.LPN:
    """Kernels of several sizes, a quadratic term, c and c0, heads of both kinds."""
    stages = (
        Stage(4, skip_kernel=5, skip_padding=2, heads=("squared",)),
        Stage(6, 3, 2, 1, skip_kernel=3, skip_stride=2, skip_padding=1, heads=("linear", "squared")),
    )
    return lf.LPN(Spec("conv", 2, stages, 5.0, 0.1, True, True, quadratic=3, quadratic_kernel=3))


def conv_wide() -> lf.LPN:
    """So many input channels that the skips run as library convolutions, not as patches."""
    stages = (
        Stage(5, skip_kernel=3, skip_padding=1),
        Stage(4, 3, 2, 1, skip_kernel=3, skip_stride=2, skip_padding=1, heads=("linear",)),
        Stage(4, 3, 1, 1, skip_kernel=0, heads=("linear",)),
    )
    return lf.LPN(Spec("conv", 33, stages, 10.0, 0.01))


def volume_mixed() -> lf.LPN:
    """As conv_mixed, and a stage without skip; one skip runs as patches and one, of more taps, as a convolution."""
    stages = (
        Stage(3, skip_kernel=3, skip_padding=1, heads=("squared",)),
        Stage(4, 3, 2, 1, skip_kernel=5, skip_stride=2, skip_padding=2, heads=("linear", "squared")),
        Stage(3, 1, skip_kernel=0, heads=("linear",)),
    )
    return lf.LPN(Spec("conv", 3, stages, 5.0, 0.1, True, True, quadratic=2, quadratic_kernel=3, ndim=3))


def volume_square() -> lf.LPN:
    """A squared first stage and competing units, on volumes."""
    stages = (
        Stage(3, bias=False, skip_kernel=3, skip_padding=2, heads=("linear",)),
        Stage(4, 3, 2, 1, skip_kernel=0, heads=("linear",), competing=True),
    )
    return lf.LPN(Spec("conv", 1, stages, 3.0, 0.1, square_first=True, ndim=3))


def square(kind: str) -> lf.LPN:
    """A squared first stage, a skip and both heads after it."""
    dense = kind == "dense"
    first = {"skip_kernel": 1} if dense else {"skip_kernel": 3, "skip_padding": 2}
    second = {"kernel": 1} if dense else {"kernel": 3, "padding": 1, "skip_kernel": 3, "skip_padding": 2}
    stages = (
        Stage(4, bias=False, heads=("linear",), **first),
        Stage(6, heads=("linear", "squared"), **second),
        Stage(3, kernel=1, skip_kernel=0, heads=("linear",)),
    )
    return lf.LPN(Spec(kind, 2, stages, 3.0, 0.1, noise_levels=(0.1, 0.2, 0.4), square_first=True))


def competing(kind: str) -> lf.LPN:
    """Units of the last stage share one output; the stage before has a head of its own."""
    dense = kind == "dense"
    first = {} if dense else {"skip_kernel": 3, "skip_stride": 2, "skip_padding": 1}
    last = {"kernel": 1, "skip_kernel": 1} if dense else {"kernel": 3, "padding": 1, "skip_kernel": 0}
    stages = (Stage(5, heads=("linear",), **first), Stage(4, heads=("linear",), competing=True, **last))
    return lf.LPN(Spec(kind, 2, stages, 3.0, 0.1))


# name -> (builder, shape of one batch of inputs)
FAMILIES = {
    "dense": (lambda: lf.MLPLPN(3, hidden=20, layers=3), (7, 3)),
    "dense-1d": (lambda: lf.MLPLPN(1, hidden=50, layers=4), (33, 1)),
    "dense-heads": (dense_heads, (5, 2)),
    "conv": (lambda: lf.ConvLPN(1, hidden=8), (2, 1, 16, 24)),
    "conv-last": (lambda: lf.ConvLPN(1, hidden=4, skip_kernel=3, heads="last", squared_head=False), (2, 1, 9, 8)),
    "conv-odd": (lambda: lf.ConvLPN(3, hidden=6, alpha=0.0), (2, 3, 17, 21)),
    "conv-conditional": (
        lambda: lf.ConvLPN(1, hidden=6, beta=10.0, sigma_conditional=True),
        (3, 1, 13, 18),
    ),
    "conv-mixed": (conv_mixed, (2, 2, 9, 11)),
    "conv-wide": (conv_wide, (2, 33, 6, 7)),
    "frame": (lambda: lf.FrameLPN(1, kernel=3, gates=((1, 1, 5), (3, 2, 4))), (2, 1, 9, 10)),
    "frame-pixels": (lambda: lf.FrameLPN(2, kernel=3, gates=((1, 1, 7), (1, 1, 4))), (2, 2, 9, 10)),
    "mixture": (lambda: lf.MixtureLPN(2, kernel=3, experts=7), (2, 2, 9, 10)),
    "frame-mirrored": (lambda: lf.FrameLPN(2, 3, ((1, 1, 7), (1, 1, 4)), border="mirror"), (2, 2, 9, 10)),
    "mixture-wide": (lambda: lf.MixtureLPN(1, kernel=3, experts=7, filters=14, border="mirror"), (2, 1, 9, 10)),
    "contexts": (lambda: lf.MixtureLPN(2, kernel=3, experts=7, contexts=4, window=5), (2, 2, 9, 10)),
    "spaced": (lambda: lf.MixtureLPN(2, kernel=4, experts=5, spacing=2), (2, 2, 9, 10)),
    "spaced-contexts": (
        lambda: lf.MixtureLPN(1, 4, 6, filters=18, contexts=3, window=9, border="mirror", spacing=2),
        (3, 1, 13, 8),
    ),
    "contexts-mirrored": (lambda: lf.MixtureLPN(1, 3, 6, filters=14, contexts=3, border="mirror"), (3, 1, 12, 7)),
    "mixture-mirrored": (lambda: lf.MixtureLPN(1, kernel=4, experts=5, border="mirror"), (3, 1, 2, 7)),
    "square": (lambda: square("conv"), (2, 2, 9, 10)),
    "square-dense": (lambda: square("dense"), (5, 2)),
    "competing": (lambda: competing("conv"), (2, 2, 9, 10)),
    "competing-dense": (lambda: competing("dense"), (5, 2)),
    "ridge": (lambda: lf.RidgeLPN(2, pairs=5, kernel=3, sigma_conditional=True), (2, 2, 9, 10)),
    "mnist": (lambda: lf.paper_network("mnist"), (2, 1, 28, 28)),
    "volume": (lambda: lf.ConvLPN(1, hidden=4, strides=(2, 2, 1), ndim=3), (2, 1, 5, 7, 6)),  # D_l of 1, 2 and 4
    "volume-conditional": (
        lambda: lf.ConvLPN(2, hidden=4, strides=(2, 1), beta=10.0, sigma_conditional=(0.05, 0.3), ndim=3),
        (3, 2, 4, 3, 5),
    ),
    "volume-mixed": (volume_mixed, (2, 3, 5, 4, 6)),
    "volume-square": (volume_square, (2, 1, 5, 4, 6)),
}  # fmt: skip


class Case:
    """A network with every parameter drawn (biases are zero at the start of training), an input, and its sigma."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64, batch: int | None = None):
        build, shape = FAMILIES[name]
        torch.manual_seed(sum(map(ord, name)))
        self.model = build()
        with torch.no_grad():
            for key, parameter in self.model.named_parameters():
                if key.rsplit(".", 1)[-1] in ("bias", "noise", "linear", "constant"):
                    parameter.normal_(std=0.3)
        self.model.to(dtype)
        if batch is not None:
            shape = (batch, *shape[1:])
        self.x, self.v, self.w = (torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(3))
        self.sigma = torch.linspace(0.05, 0.3, shape[0], dtype=dtype) if self.model.is_noise_conditional else None
        self.p = torch.randn(shape[0], dtype=torch.float64).to(dtype)

    @property
    def reference_arguments(self):
        """(spec, x, P, features) as lpn_fast.algebra.reference takes them, in float64."""
        model = self.model.double()
        x, features, unit = model._checked(self.x.double(), None if self.sigma is None else self.sigma.double())
        if unit is not None:
            pytest.skip("the reference gives psi and f in noise units; tests/test_noise_units.py compares those")
        return model.spec, x, model.packed().detach(), features


def everything(model: lf.LPN, x, p, v, sigma=None) -> tuple[torch.Tensor, ...]:
    """psi, f, H v, and the gradients of sum p psi + <v, f> in x and P, through the public names."""
    x = x.detach().requires_grad_()
    psi, f = model.potential_and_prox(x, sigma)
    gx, *gradients = torch.autograd.grad((p * psi).sum() + (v * f).sum(), [x, *model.parameters()])
    by_name = dict(zip((n for n, _ in model.named_parameters()), gradients, strict=True))
    gP = torch.cat([by_name[slot.name].reshape(-1) for slot in layout(model.spec)])
    with torch.no_grad():
        return psi, f, model.hvp(x, v, sigma), gx, gP


def gain_limit(model: lf.LPN) -> float:
    """The largest gain of a network of patches."""
    return mixture.LIMIT if isinstance(model, lf.MixtureLPN) else frame.LIMIT


def perturbed(model: lf.LPN, size: float = 0.5) -> lf.LPN:
    """The network projected, far from its start: a random step of `size`, in the units of each parameter."""
    torch.manual_seed(0)
    scales = model.step_scales()
    model.step_({name: size * scales[name] * torch.randn_like(p) for name, p in model.named_parameters()})
    return model.project_()


@contextlib.contextmanager
def on_threads(count: int):
    """So many threads of torch's inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def files_below(size: int):
    """A full disk: no file of this process may grow beyond `size` bytes inside."""
    resource = pytest.importorskip("resource", reason="limits of a process are a matter of Unix")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """|a - b| / |b| in float64; 0 for two empty tensors."""
    a, b = a.double(), b.double()
    return ((a - b).norm() / b.norm().clamp_min(1e-300)).item() if b.numel() else float(a.shape != b.shape)
