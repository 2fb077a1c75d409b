"""Planted faults in the CUDA kernels' index arithmetic and barriers, which the tests on the model have to see."""

import shutil

import cuda_model
import pytest
import torch
from cases import relative
from cuda_model import PRECISIONS, SMALL, Model

import lpn_fast as lf
from lpn_fast.algebra import reference

pytestmark = pytest.mark.skipif(cuda_model.COMPILER is None, reason="no C++ compiler to build the model with")

# name -> (file, text, what takes its place, precision in which it shows)
FAULTS = {
    "blocks of a pair exchanged": (
        "numbers.h",
        "lane = simt::lane(), k = lane >> 3 & 1, n = lane >> 4;\n    uint32_t words[4];",
        "lane = simt::lane(), n = lane >> 3 & 1, k = lane >> 4;\n    uint32_t words[4];",
        "fp16",
    ),
    "rows of a block in another order": (
        "numbers.h",
        "return stored_row(lane >> 2) * 4 + (lane & 3);",
        "return (lane >> 2) * 4 + (lane & 3);",
        "fp32",
    ),
    "no barrier before the gradients": (
        "mlp_vjp.h",
        "      rows.adjoint(l);\n      simt::sync_block();",
        "      rows.adjoint(l);\n      simt::sync_warp();",
        "fp16",
    ),
    "warps of a team do not wait for each other": (
        "mlp_network.h",
        "simt::sync_team<K::team>(simt::warp() / K::team);",
        "simt::sync_warp();",
        "fp16",
    ),
    "weights used before their copies arrived": ("mlp_network.h", "  simt::wait_copies();\n", "", "fp16"),
    "e gone before its gradient was formed": (
        "mlp_vjp.h",
        "      simt::sync_block();  // e was read: the source of delta may take its place\n      rows.tangent(l, p);",
        "      rows.tangent(l, p);",
        "fp16",
    ),
}


@pytest.fixture(scope="module", params=FAULTS)
def faulty(request, tmp_path_factory):
    """(the model built with one fault, the precision in which it shows)"""
    file, text, instead, precision = FAULTS[request.param]
    sources = tmp_path_factory.mktemp("faulty") / "cuda"
    shutil.copytree(cuda_model.SOURCES, sources)
    path = sources / file
    assert path.read_text().count(text) == 1, f"the fault has lost its place in {file}"
    path.write_text(path.read_text().replace(text, instead))
    return cuda_model.build(sources, "-O0", f"-DLPN_MODEL_PRECISION={PRECISIONS.index(precision)}"), precision


def errors(library, precision, backward):
    """Relative errors of the gradients in x and P."""
    torch.manual_seed(0)
    network = lf.MLPLPN(2, hidden=32, layers=2)
    packed, x, v = network.packed().detach(), *torch.randn(2, 70, 2)
    wanted = reference.vjp(network.spec, x.double(), packed.double(), None, None, v.double())
    got = Model(library, network.spec, packed, SMALL, backward).vjp(x, None, v, precision)
    return [*map(relative, got, wanted)]


def test_a_planted_fault_is_seen(faulty):
    found = errors(*faulty, False) + errors(*faulty, True)
    assert not all(error < 0.1 for error in found)  # NaN is seen too


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_without_a_fault_the_same_check_is_silent(precision):
    assert all(error < 4e-3 for error in errors(cuda_model.build(), precision, True))
