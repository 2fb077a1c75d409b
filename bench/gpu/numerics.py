"""Every backend and precision against float64 on the device; determinism, CUDA graphs, streams, no synchronisation.

Truth is algebra/reference.py in float64. Tolerances are those of tests/test_precision.py's kind: relative L2 of the
prox and of second-order results, per precision.
"""

import contextlib
import copy

import torch

import lpn_fast as lf
from lpn_fast.algebra import reference
from lpn_fast.algebra.parameters import layout
from lpn_fast.ops import registry
from lpn_fast.ops.packing import projected_gradient

from .session import Session, graphed, run_part

TOLERANCE = {"fp32": (1e-5, 1e-5), "tf32": (1e-3, 4e-3), "fp16": (1e-3, 4e-3), "bf16": (6e-3, 2.5e-2)}
SYMMETRY = {"fp32": 1e-6, "tf32": 1e-3, "fp16": 1e-3, "bf16": 1e-2}


def networks(tiny: bool):
    """(name, model, shape): the published ones, and fully convolutional ones at odd sizes."""
    torch.manual_seed(0)
    if tiny:
        yield "conv", lf.ConvLPN(1, hidden=3, strides=(1, 2), skip_kernel=3, beta=10.0), (1, 1, 5, 4)
        return
    yield "conv odd", lf.ConvLPN(3, hidden=64), (3, 3, 37, 50)
    yield "conv wide", lf.ConvLPN(1, hidden=256, skip_kernel=3), (2, 1, 64, 48)
    yield "conv narrow", lf.ConvLPN(2, hidden=20, kernel=5, beta=10.0, sigma_conditional=True), (2, 2, 33, 31)
    yield "mnist start", lf.paper_network("mnist"), (3, 1, 28, 28)  # e near 1e-9: below half precision, but for units
    yield "mnist", trained_like(lf.paper_network("mnist")), (7, 1, 28, 28)
    yield "celeba", trained_like(lf.paper_network("celeba")), (2, 3, 128, 128)
    yield "frame-gray", lf.pretrained("frame-gray"), (2, 1, 45, 61)  # squared first stage, gates of single pixels
    yield "frame-color", lf.pretrained("frame-color"), (1, 3, 33, 40)
    yield "fast-gray", lf.pretrained("fast-gray"), (2, 1, 45, 161)  # gates that compete
    yield "fast-color", lf.pretrained("fast-color"), (1, 3, 33, 140)
    yield "frame", lf.FrameLPN(1, kernel=4, gates=((3, 2, 24), (1, 1, 8))), (2, 1, 37, 30)
    yield "dense", lf.MLPLPN(5, hidden=64, layers=3), (129, 5)


def trained_like(model: lf.LPN) -> lf.LPN:
    """The published start has cores of 4.5e-5, so that psi hardly depends on them; these carry as much as the skips."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("core", "head")):
                fan_in = parameter[0].numel() if parameter.dim() > 1 else parameter.numel()
                parameter.copy_(torch.rand_like(parameter) * (2.0 / fan_in))
    return model


def measure(session: Session) -> None:
    for name, model, shape in networks(session.tiny):
        model = model.to(session.device).eval()
        x, v, w = torch.randn(3, *shape, device=session.device)
        sigma = torch.full((shape[0],), 0.1, device=x.device) if model.is_noise_conditional else None
        exact = _exact(model, x, v, sigma)
        for precision in TOLERANCE:
            for backend, reason in registry.reasons(model.spec, x, precision).items():
                if reason is None and session.seconds_left < 0:
                    session.show(f"---- {name} {backend} {precision}: no time left")
                elif reason is None and (backend, precision) == ("torch", "fp16") and name.endswith("start"):
                    session.show(f"---- {name} {backend} {precision}: stores e as it is, most of it is lost")
                elif reason is None:
                    _check(session, f"{name} {backend} {precision}", backend, precision, model, x, v, w, sigma, exact)


def _exact(model, x, v, sigma) -> tuple:
    """f(x), H(x) v and the gradient of <v, f(x)> in P, float64; in units of the noise where the network has them."""
    x, features, unit = model._checked(x, sigma)
    unit = torch.ones((), device=x.device) if unit is None else unit
    at, v, unit = (x / unit).double(), v.double(), unit.double()
    truth = (model.spec, at, model.packed().detach().double(), None if features is None else features.double())
    gradient = reference.vjp(*truth, None, unit * v)[1]  # trained weights lie at zero, where the rule of packing acts
    gradient = projected_gradient(model.spec, gradient, truth[2], model._constrained)
    return unit * reference.prox(*truth), reference.hvp(*truth, v), gradient


def _check(session, label, backend, precision, model, x, v, w, sigma, exact) -> None:
    model.precision = precision
    try:
        with lf.use_backend(backend):
            f, hv, hw, gradient = _results(model, x, v, w, sigma)
            errors = [_relative(a, b) for a, b in zip((f, hv, gradient), exact, strict=True)]
            first, second = TOLERANCE[precision]
            ok = errors[0] <= first and max(errors[1:]) <= second
            session.check(label, ok, "prox {:.1e} hvp {:.1e} gradient {:.1e}".format(*errors))
            gap = (w * hv - v * hw).flatten(1).sum(1).abs() / (w.flatten(1).norm(dim=1) * hv.flatten(1).norm(dim=1))
            gap = gap.max().item()
            session.check(f"{label} symmetry", gap <= SYMMETRY[precision], f"{gap:.1e}")
            if session.device == "cuda" and backend != "torch":
                again = _results(model, x, v, w, sigma)
                session.check(f"{label} same bits twice", all(map(torch.equal, (f, hv, hw, gradient), again)))
                _graph(session, label, model, x, sigma, f)
                _elsewhere(session, label, model, x, sigma, f)
    except Exception as error:  # one backend's failure must not hide what the others do
        session.check(label, False, f"{type(error).__name__}: {error}".splitlines()[0][:200])
    finally:
        model.precision = "fp32"


def compile_for(name: str, precision: str) -> None:
    """Launch every Triton kernel that the checks of one network launch."""
    model, shape = next((m.cuda().eval(), s) for n, m, s in networks(False) if n == name)
    model.precision = precision
    x, v = torch.randn(2, *shape, device="cuda")
    sigma = torch.full((shape[0],), 0.1, device=x.device) if model.is_noise_conditional else None
    with lf.use_backend("triton"):
        _results(model, x, v, v, sigma)
        with torch.no_grad():
            model(x, sigma)


def _results(model, x, v, w, sigma):
    with torch.no_grad():
        hv, hw = model.hvp(x, v, sigma), model.hvp(x, w, sigma)
    model.zero_grad(set_to_none=True)
    f = model(x, sigma)
    f.backward(v)
    parts = [model.get_parameter(slot.name) for slot in layout(model.spec)]
    gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parts])
    return f.detach(), hv, hw, gradient


def _graph(session, label, model, x, sigma, f) -> None:
    held = x.clone()
    out = {}

    def call():
        with torch.no_grad():
            out["f"] = model(held, sigma)

    with _no_synchronisation():
        call()
    replay = graphed(call)
    held.copy_(x.flip(0))
    replay()
    held_result = out["f"].clone()
    held.copy_(x)
    replay()
    session.check(f"{label} graph replays new inputs", torch.equal(out["f"], f) and not torch.equal(held_result, f))


def _elsewhere(session, label, model, x, sigma, f) -> None:
    """On another stream, and on the last device while the first is current."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        other = model(x, sigma)
    side.synchronize()
    session.check(f"{label} on another stream", torch.equal(other, f))
    last = torch.cuda.device_count() - 1
    if last > 0:
        there = copy.deepcopy(model).to(f"cuda:{last}")
        with torch.no_grad():
            other = there(x.to(f"cuda:{last}"), None if sigma is None else sigma.to(f"cuda:{last}"))
        same = torch.equal(other.cpu(), f.cpu()) and torch.cuda.current_device() == 0
        session.check(f"{label} on another device than the current one", same)


@contextlib.contextmanager
def _no_synchronisation():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _relative(a, b) -> float:
    return ((a.double() - b).norm() / b.norm().clamp_min(1e-300)).item()


if __name__ == "__main__":
    raise SystemExit(run_part(__name__, __doc__, measure))
