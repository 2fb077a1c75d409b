"""Operators of other libraries, and complex MRI: against dense matrices."""

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from physics_cases import dense, make_coils, rand, randn

import lpn_fast as lf
from lpn_fast import physics as P

SHAPE, DATA = (1, 4, 5), (3, 5)
ENTRIES = randn(15, 20).numpy() * (rand(15, 20, seed=2).numpy() > 0.5)


class OpTomo(scipy.sparse.linalg.LinearOperator):
    """Products with single vectors of float32 only; of several it has scipy's, which hands on columns of two axes."""

    def __init__(self):
        super().__init__(np.float32, (15, 20))

    def _matvec(self, v):
        assert v.ndim == 1
        return (ENTRIES @ v).astype(np.float32)

    def _rmatvec(self, v):
        assert v.ndim == 1
        return (ENTRIES.T @ v).astype(np.float32)


KINDS = {
    "array": lambda: ENTRIES,
    "tensor": lambda: torch.from_numpy(ENTRIES),
    "sparse matrix": lambda: scipy.sparse.csr_matrix(ENTRIES),
    "sparse array": lambda: scipy.sparse.coo_array(ENTRIES),
    "LinearOperator": lambda: scipy.sparse.linalg.aslinearoperator(ENTRIES),
    "vectors only": OpTomo,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_products_of_every_kind_are_those_of_the_matrix(kind, dtype):
    physics = P.from_matrix(KINDS[kind](), SHAPE, DATA)
    x, y = randn(3, *SHAPE, dtype=dtype), randn(3, *DATA, dtype=dtype, seed=2)
    expected = torch.from_numpy(ENTRIES).to(dtype)
    assert torch.allclose(physics.A(x).flatten(1), x.flatten(1) @ expected.T, rtol=1e-4, atol=1e-5)
    assert torch.allclose(physics.A_adjoint(y).flatten(1), y.flatten(1) @ expected, rtol=1e-4, atol=1e-5)
    assert physics.A(x).dtype == dtype and physics.measurement_shape(x.shape) == (3, *DATA)
    largest = np.linalg.norm(ENTRIES, 2)
    assert largest <= physics.norm() * (1 + 1e-6) <= 1.5 * largest


@pytest.mark.parametrize("kind", KINDS)
def test_without_channels_every_channel_is_measured_by_itself(kind):
    physics, each = P.from_matrix(KINDS[kind](), SHAPE[1:], DATA), P.from_matrix(KINDS[kind](), SHAPE, DATA)
    x, y = randn(2, 3, *SHAPE[1:]), randn(2, 3, *DATA, seed=2)
    assert torch.equal(physics.A(x).flatten(0, 1), each.A(x.flatten(0, 1)[:, None]))
    assert torch.equal(physics.A_adjoint(y).flatten(0, 1), each.A_adjoint(y.flatten(0, 1))[:, 0])
    assert physics.measurement_shape(x.shape) == (2, 3, *DATA) and physics.A(x[:, 0]).shape == (2, *DATA)
    turned = P.from_matrix(1j * ENTRIES, SHAPE[1:])
    z = turned.A(x)
    assert z.shape == turned.measurement_shape(x.shape) == (2, 3, 2, 15)
    assert torch.allclose((z * z).sum(), (turned.A_adjoint(z) * x).sum())


@pytest.mark.parametrize("wrap", [np.asarray, scipy.sparse.csr_matrix, scipy.sparse.linalg.aslinearoperator])
def test_a_complex_matrix_measures_two_real_numbers(wrap):
    matrix = torch.complex(randn(6, 20), randn(6, 20, seed=2)).numpy()
    physics = P.from_matrix(wrap(matrix), SHAPE)
    x = randn(2, *SHAPE)
    assert physics.A(x).shape == (2, 2, 6)
    assert torch.allclose(physics.A(x)[:, 1], x.flatten(1) @ torch.from_numpy(matrix.imag).T)
    assert (P.adjoint_mismatch(physics, x, randn(2, 2, 6, seed=3)) < 1e-12).all()


def test_a_matrix_is_reconstructed_from():
    size = 24
    keep = np.flatnonzero(rand(size * size).numpy() > 0.5)
    mask = scipy.sparse.eye(size * size, format="csr")[keep]
    physics = P.from_matrix(mask, (1, size, size))
    x = torch.linspace(0, 1, size).expand(1, 1, size, size).contiguous()
    y = physics.A(x) + 0.01 * randn(1, len(keep)).float()
    result = lf.reconstruct(y, physics, lf.pretrained("frame-gray"), noise=0.01)
    assert result.conditions.all_hold and lf.metrics.psnr(result.x, x) > 25
    steps = lf.solvers.pgd(y, physics, lf.pretrained("frame-gray"), noise=0.01, max_iter=1).conditions
    assert "fails with probability 1e-09" in str(steps)


@pytest.mark.parametrize(
    "operator, shapes, error, message",
    [
        (np.ones(5), [(1, 1, 5)], TypeError, r"operator must have a shape \(m, n\), got ndarray of shape \(5,\)"),
        (np.ones((3, 4)), [(1, 1, 5)], ValueError, r"image_shape must have 4 entries.*got \(1, 1, 5\)"),
        (np.ones((3, 4)), [(1, 2, 2), (2, 2)], ValueError, r"data_shape must have 3 entries.*got \(2, 2\)"),
        (type("O", (), {"shape": (3, 4)})(), [(1, 2, 2)], TypeError, "operator must have products"),
    ],
)
def test_what_is_no_operator_is_named(operator, shapes, error, message):
    with pytest.raises(error, match=message):
        P.from_matrix(operator, *shapes)


# Complex MRI.


@pytest.mark.parametrize(
    "coils",
    [None, make_coils(3, 6, 8), make_coils(6, 6, 8).reshape(2, 3, 6, 8)],
    ids=["one coil", "three coils", "three coils of each"],
)
@pytest.mark.parametrize("masks", [1, 2])
def test_complex_images_keep_their_phase(coils, masks):
    mask = (rand(masks, 6, 8) > 0.3).double() * rand(masks, 6, 8, seed=2)
    physics = P.MRI(mask if masks > 1 else mask[0], coils, complex_images=True)
    x = randn(2, 2, 6, 8)
    y = physics.A(x)
    assert y.shape == (2, 1, *(() if coils is None else (3,)), 2, 6, 8) == physics.measurement_shape(x.shape)
    image = torch.complex(x[:, 0], x[:, 1])[:, None]
    seen = image if coils is None else image * coils
    expected = torch.fft.fft2(seen, norm="ortho") * mask[:, None]
    assert torch.allclose(
        torch.view_as_complex(y[:, 0].movedim(-3, -1).contiguous()), expected.reshape(y[:, 0, ..., 0, :, :].shape)
    )
    assert (P.adjoint_mismatch(physics, x, randn(*y.shape, seed=3)) < 1e-12).all()
    z, gamma = randn(2, 2, 6, 8, seed=4), torch.tensor([0.5, 3.0], dtype=torch.float64)
    found = physics.prox_l2(z, y, gamma)
    gradient = found - z + gamma[:, None, None, None] * physics.A_adjoint(physics.A(found) - y)
    assert gradient.abs().max() < 1e-6
    if masks > 1 or (coils is not None and coils.dim() == 4):
        one = physics.select(torch.tensor([1]))
        assert torch.allclose(one.A(x[1:]), y[1:])
    else:
        largest = torch.linalg.matrix_norm(dense(physics, (2, 6, 8)), ord=2)
        assert largest <= physics.norm() * (1 + 1e-12)


def test_a_gray_network_reconstructs_complex_images():
    physics = P.MRI(P.MRI.lines(32, acceleration=2).mask, complex_images=True)
    at = torch.arange(32.0) - 16
    disc = (at[:, None].square() + at.square() < 90).float()
    x = torch.stack([0.8 * disc, 0.4 * disc])[None]
    y = physics.A(x)
    y = (y + 0.01 * randn(*y.shape).float()) * (physics.mask != 0)
    result = lf.reconstruct(y, physics, noise=0.01)
    assert lf.metrics.psnr(result.x, x) > lf.metrics.psnr(physics.start(y), x) + 3
