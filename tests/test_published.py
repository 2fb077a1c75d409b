"""Parity with the published formulas, evaluated here plainly by torch.nn and autograd."""

import pytest
import torch
import torch.nn.functional as F
from cases import relative

import lpn_fast as lf
from lpn_fast.networks.published import _published_names

SMALL = {"in_dim": 2, "hidden": 6}
PARAMS = {
    "laplacian": {"in_dim": 3, "hidden": 7, "layers": 2, "beta": 10.0, "alpha": 0.02},
    "lpn_mnist": SMALL | {"beta": 10.0, "alpha": 0.01},
    "lpn_128": SMALL | {"beta": 100.0, "alpha": 1e-6},
}
SHAPE = {"laplacian": (5, 3), "lpn_mnist": (2, 2, 28, 28), "lpn_128": (1, 2, 128, 128)}


def random_state(family: str) -> dict[str, torch.Tensor]:
    """A state dict of the published code's names and shapes, all weights drawn, float64."""
    p = PARAMS[family]
    c, h = p["in_dim"], p["hidden"]
    shapes = {}
    if family == "laplacian":
        cores = p["layers"]
        shapes["lin.0.weight"] = (h, c)
        for i in range(cores):
            shapes |= {f"lin.{i + 1}.weight": (h, h), f"res.{i}.weight": (h, c), f"res.{i}.bias": (h,)}
        shapes |= {f"lin.{cores + 1}.weight": (1, h), f"res.{cores}.weight": (1, c), f"res.{cores}.bias": (1,)}
    else:
        cores = 3 if family == "lpn_mnist" else 5
        shapes["lin.0.weight"] = (h, c, 3, 3)
        for i in range(cores):
            shapes |= {f"lin.{i + 1}.weight": (h, h, 3, 3), f"res.{i}.weight": (h, c, 3, 3), f"res.{i}.bias": (h,)}
        last = cores + 1
        if family == "lpn_mnist":
            shapes |= {f"lin.{last}.weight": (64, h * 49), f"res.{cores}.weight": (64, 49 * c)}
        else:
            shapes |= {f"lin.{last}.weight": (64, h, 16, 16), f"res.{cores}.weight": (64, c, 16, 16)}
            shapes |= {"lin.0.bias": (h,), f"lin.{last + 1}.bias": (1,)}
        shapes |= {f"res.{cores}.bias": (64,), f"lin.{last + 1}.weight": (1, 64)}
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, shape in shapes.items():
        t = torch.randn(shape, generator=generator, dtype=torch.float64)
        fan_in = max(1, t[0].numel())
        core = name.startswith("lin") and name.endswith("weight") and name != "lin.0.weight"
        state[name] = t.abs() / fan_in if core else t / fan_in**0.5
    return state


def published_potential(family: str, state: dict, x: torch.Tensor) -> torch.Tensor:
    """psi (N,) as the published forward passes compute it."""
    p = PARAMS[family]
    lin, res = (lambda i, k: state.get(f"lin.{i}.{k}")), (lambda i, k: state.get(f"res.{i}.{k}"))

    def act(u):
        return F.softplus(u, p["beta"], threshold=40)

    def small(size):
        return F.interpolate(x, (size, size), mode="bilinear", align_corners=False)

    if family == "laplacian":
        z = act(x @ lin(0, "weight").T)
        for i in range(p["layers"]):
            z = act(z @ lin(i + 1, "weight").T + F.linear(x, res(i, "weight"), res(i, "bias")))
        last = p["layers"]
        y = z @ lin(last + 1, "weight").T + F.linear(x, res(last, "weight"), res(last, "bias"))
    else:
        mnist = family == "lpn_mnist"
        strides, sizes = ((2, 1, 2), (28, 14, 14)) if mnist else ((2, 1, 2, 1, 2), (128, 64, 64, 32, 32))
        z = act(F.conv2d(x, lin(0, "weight"), lin(0, "bias"), padding=1))
        for i, (stride, size) in enumerate(zip(strides, sizes, strict=True)):
            skip = F.conv2d(small(size), res(i, "weight"), res(i, "bias"), stride, 1)
            z = act(F.conv2d(z, lin(i + 1, "weight"), None, stride, 1) + skip)
        n = len(strides)
        if mnist:
            z = act(
                z.flatten(1) @ lin(n + 1, "weight").T + F.linear(small(7).flatten(1), res(n, "weight"), res(n, "bias"))
            )
        else:
            skip = F.conv2d(small(16), res(n, "weight"), res(n, "bias"))
            z = act(F.conv2d(z, lin(n + 1, "weight")) + skip).flatten(1)
        y = F.linear(z, lin(n + 2, "weight"), lin(n + 2, "bias"))
    return y[:, 0] + p["alpha"] * x.flatten(1).square().sum(1)


@pytest.mark.parametrize("family", PARAMS)
@pytest.mark.parametrize(
    "backend, dtype, tolerance",
    [("torch", torch.float64, 1e-12), ("torch", torch.float32, 1e-5), ("cpu", torch.float32, 1e-5)],
)
def test_parity_with_the_published_formula(family, backend, dtype, tolerance):
    state = {name: t.to(dtype) for name, t in random_state(family).items()}
    model = lf.from_reference(state, {"model": family, "params": PARAMS[family]})
    torch.manual_seed(2)
    x, v = torch.rand(SHAPE[family], dtype=dtype), torch.randn(SHAPE[family], dtype=dtype)
    true, plain = (published_results(family, state, x, v, precision) for precision in (torch.float64, dtype))

    with lf.use_backend(backend):
        ours_x = x.clone().requires_grad_()
        f = model(ours_x)
        gradients = torch.autograd.grad((v * f).sum(), [ours_x, *model.parameters()])
        ours = {"psi": model.potential(x), "f": f, "x": gradients[0]}
    by_name = dict(zip((n for n, _ in model.named_parameters()), gradients[1:], strict=True))
    ours |= {
        theirs: by_name[name].reshape(state[theirs].shape) for theirs, name in _published_names(model.spec).items()
    }

    for name, value in true.items():
        # sigma'' turns the rounding of u into beta times as much, for everybody who computes in float32
        bound = max(tolerance, 2 * relative(plain[name], value))
        assert relative(ours[name], value) <= (tolerance if name in ("psi", "f") else bound), name


def published_results(family, state, x, v, dtype) -> dict[str, torch.Tensor]:
    """psi, f, and the gradients of <v, f> in x and every parameter that reaches f, computed in `dtype`."""
    x = x.to(dtype).requires_grad_()
    leaves = {name: t.to(dtype).requires_grad_() for name, t in state.items()}
    psi = published_potential(family, leaves, x)
    f = torch.autograd.grad(psi.sum(), x, create_graph=True)[0]
    wanted = [x, *leaves.values()]
    gradients = torch.autograd.grad((v.to(dtype) * f).sum(), wanted, allow_unused=True)
    reached = {name: g for name, g in zip(["x", *leaves], gradients, strict=True) if g is not None}
    return {"psi": psi, "f": f, **reached}


def test_alpha_is_converted():
    model = lf.from_reference(random_state("lpn_mnist"), {"model": "lpn_mnist", "params": PARAMS["lpn_mnist"]})
    assert model.alpha == 2 * PARAMS["lpn_mnist"]["alpha"]


@pytest.mark.parametrize("name, channels, size", [("mnist", 1, 28), ("mayoct", 1, 128), ("celeba", 3, 128)])
def test_paper_networks_have_the_published_geometry(name, channels, size):
    spec = lf.paper_network(name).spec
    assert spec.channels == channels and spec.image_size == (size, size)
    assert spec.stage_sizes(size, size)[-1] == (1, 1)


def test_paper_network_starts_as_published():
    core = lf.paper_network("mnist").stages[1].core
    assert abs(core.log().mean() + 10) < 0.05 and abs(core.log().std() - 0.1) < 0.02


def test_checkpoint_files_load_without_executing_code(tmp_path):
    state = {n: t.float() for n, t in random_state("laplacian").items()}
    config = {"model": "laplacian", "params": PARAMS["laplacian"]}
    torch.save({"model_state_dict": state, "step": 7}, tmp_path / "model.pt")
    x = torch.randn(4, 3)
    assert torch.equal(lf.from_reference(tmp_path / "model.pt", config)(x), lf.from_reference(state, config)(x))

    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('code ran')",))

    torch.save({"model_state_dict": {"lin.0.weight": Bomb()}}, tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match="could not be read"):
        lf.from_reference(tmp_path / "bomb.pt", config)


def broken(state, **changes):
    return {n: changes.get(n, t) for n, t in state.items()}


@pytest.mark.parametrize(
    "make, config, message",
    [
        (lambda s: s, {"model": "lpn_999"}, "lpn_999"),
        (lambda s: s, {"model": "laplacian", "parms": {}}, "parms"),
        (lambda s: s, {"model": "laplacian", "params": {"depth": 3}}, "depth"),
        (lambda s: s | {"extra": torch.zeros(1)}, None, "unexpected keys.*extra"),
        (lambda s: {n: t for n, t in s.items() if n != "res.0.bias"}, None, "missing keys.*res.0.bias"),
        (lambda s: s | {"lin.1.weight": -s["lin.1.weight"]}, None, "lin.1.weight must be non-negative, got a mini"),
        (lambda s: s | {"lin.1.weight": s["lin.1.weight"] * float("nan")}, None, "lin.1.weight must be finite"),
        (lambda s: s | {"lin.1.weight": torch.zeros(5, 5)}, None, r"must have shape \(7, 7\), got \(5, 5\)"),
    ],
)  # fmt: skip
def test_checkpoints_that_do_not_fit_are_refused(make, config, message):
    config = config or {"model": "laplacian", "params": PARAMS["laplacian"]}
    with pytest.raises(ValueError, match=message):
        lf.from_reference(make(random_state("laplacian")), config)
