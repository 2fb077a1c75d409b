"""Exported graphs: f and psi of every family to 1e-5, in files that torch.export and onnxruntime run at any size."""

import numpy as np
import pytest
import torch
from cases import FAMILIES, Case, relative

import lpn_fast as lf
from lpn_fast.interop import FeedForward, export

TOLERANCE = 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_the_plain_graph_is_the_network(name):
    case = Case(name)
    wanted = case.model.potential_and_prox(case.x, case.sigma)
    f, psi = FeedForward(case.model, with_potential=True)(case.x, case.sigma)
    assert relative(psi, wanted[0]) <= 1e-12 and relative(f, wanted[1]) <= 1e-12


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (16, 17), (23, 31)])
def test_the_plain_graph_is_the_network_at_any_size(size):
    model = Case("conv-odd").model
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    assert relative(FeedForward(model)(x), model(x)) <= 1e-12


def test_negative_weights_are_projected_before_they_are_written():
    model = Case("conv").model
    with torch.no_grad():
        model.stages[1].core.sub_(1.0)
    x = torch.rand(2, 1, 9, 8, dtype=torch.float64)
    assert relative(FeedForward(model)(x), model(x)) <= 1e-12


def single(name):
    """The family in float32, without gradients."""
    return Case(name, torch.float32).model.eval().requires_grad_(False)


SIZE = (12, 10, 8)  # sides of images, or volumes, where they are fixed


def other_sizes(model, fixed):
    spec = model.spec
    if spec.is_dense:
        return [(5, spec.channels), (2, spec.channels)]
    sizes = [spec.image_size] if spec.image_size or fixed else [(17, 21, 6)[: spec.ndim], (30, 9, 5)[: spec.ndim]]
    return [(n, spec.channels, *(s or SIZE[: spec.ndim])) for n, s in zip((1, 3), sizes * 2, strict=False)]


EXPORTED = (
    "dense", "conv-odd", "conv-conditional", "conv-mixed", "ridge", "mnist", "frame-mirrored", "volume-conditional",
)  # fmt: skip


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", EXPORTED)
def test_torch_export_runs_at_other_sizes(tmp_path, name, fixed):
    model = single(name)
    size = SIZE[: model.spec.ndim] if fixed and model.spec.axes and model.spec.image_size is None else None
    path = export(model, tmp_path / "f.pt2", size=size, potential=True)
    program = torch.export.load(path).module()
    for shape in other_sizes(model, fixed):
        x = torch.rand(shape)
        sigma = torch.full((shape[0],), 0.1) if model.is_noise_conditional else None
        f, psi = program(x, sigma) if model.is_noise_conditional else program(x)
        wanted = model.potential_and_prox(x, sigma)
        assert relative(f, wanted[1]) <= TOLERANCE and relative(psi, wanted[0]) <= TOLERANCE
    operators = {str(node.target) for node in torch.export.load(path).graph.nodes}
    assert not any("lpn_fast" in operator for operator in operators)


@pytest.mark.parametrize(
    "name, fixed",
    [(name, fixed) for name in EXPORTED for fixed in (False, True) if fixed or "volume" not in name],  # as .pt2 above
)
@pytest.mark.filterwarnings("ignore")
def test_onnxruntime_runs_at_other_sizes(tmp_path, name, fixed):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra 'onnx')")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra 'onnx')")
    model = single(name)
    size = SIZE[: model.spec.ndim] if fixed and model.spec.axes and model.spec.image_size is None else None
    path = export(model, tmp_path / "f.onnx", size=size, potential=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in other_sizes(model, fixed):
        x = torch.rand(shape)
        sigma = torch.full((shape[0],), 0.1) if model.is_noise_conditional else None
        given = {"x": x.numpy()} | ({} if sigma is None else {"sigma": sigma.numpy()})
        f, psi = map(torch.from_numpy, session.run(None, given))
        wanted = model.potential_and_prox(x, sigma)
        assert relative(f, wanted[1]) <= TOLERANCE and relative(psi, wanted[0]) <= TOLERANCE


def test_wrong_exports_are_refused(tmp_path, monkeypatch):
    model = single("conv")
    with pytest.raises(ValueError, match=r"\.pt2 or \.onnx, got 'f\.bin'"):
        export(model, tmp_path / "f.bin")
    with pytest.raises(ValueError, match="dense"):
        export(single("dense"), tmp_path / "f.pt2", size=(3, 3))
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ValueError, match=r'pip install "lpn-fast\[onnx\]"'):
        export(model, tmp_path / "f.onnx")
    assert np.array_equal(list(tmp_path.iterdir()), []) and lf.interop.export is export
