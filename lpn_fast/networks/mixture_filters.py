"""More filters than a basis of patches has, and experts over them whose gain is limited.

The first of the filters a_j / k are an orthonormal basis, which begins with the C patch means: an expert that passes
everything passes it exactly. The others are of unit norm and without means. An expert passes the form
sum_j W_mj a_j a_j^T, whose largest eigenvalue lambda_m is limited. Cutting W_m after each step would wear experts off:
of steps to and fro only those that lead beyond the limit are undone, and filters that turn raise lambda_m as often as
they lower it. So an expert at the limit counts as L W_m / lambda_m. Gradients are those of that quotient, and after a
step W_m is scaled back to the limit from either side.
"""

import torch
from torch import Tensor

from .frame import hold_orthonormal_, rotations
from .gain import forms_of


def forms_of_experts(skip: Tensor, core: Tensor) -> Tensor:
    """sum_j W_mj a_j a_j^T, [M, d, d], for filters a_j / k [n, C, k, k] and W [M, n, 1, 1]."""
    return forms_of(skip.flatten(1) * skip.shape[-1], core.flatten(1))


def forms_beyond(skip: Tensor, core: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """(experts m whose form has an eigenvalue above `most`, these forms)."""
    forms = forms_of_experts(skip, core)
    room = most * torch.eye(forms.shape[-1], dtype=forms.dtype, device=forms.device) - forms
    rows = (torch.linalg.cholesky_ex(room).info > 0).nonzero()[:, 0]  # a tenth of the time of eigenvalues
    return rows, forms[rows]


@torch.no_grad()
def scale_rows_(core: Tensor, rows: Tensor, forms: Tensor, largest: float) -> None:
    """Scale W_m of these experts, in place, so that the largest eigenvalue of their forms becomes `largest`."""
    if len(rows):
        core[rows] *= (largest / torch.linalg.eigvalsh(forms)[:, -1]).view(-1, 1, 1, 1)


@torch.no_grad()
def keep_to_limit_(skip: Tensor, core: Tensor, slopes: Tensor, most: float) -> Tensor:
    """Reduce the gradients of the filters and those in log W, `slopes`, in place, to what leaves lambda_m at the limit.

    Returns the experts that this is done for, those whose lambda_m is above `most`.
    """
    rows, forms = forms_beyond(skip, core, most)
    if len(rows) and skip.grad is not None:
        values, vectors = torch.linalg.eigh(forms)
        top, largest = vectors[:, :, -1], values[:, -1:]
        along = top @ skip.flatten(1).T * skip.shape[-1]  # a_j . v_m, [rows, n]
        weights, wish = core[rows].flatten(1), slopes[rows].sum((1, 2, 3))[:, None]
        slopes[rows] -= (wish * weights * along**2 / largest).view_as(slopes[rows])
        turns = (2 * wish * weights * along / largest).T @ top  # of a_j
        skip.grad.sub_((turns * skip.shape[-1]).view_as(skip))
    return rows


@torch.no_grad()
def hold_filters_(skip: Tensor) -> None:
    """Filters a_j / k, [n, C, k, k], as above, in place: an orthonormal basis, then unit norms without means."""
    channels, k, basis = skip.shape[1], skip.shape[-1], skip[0].numel()
    hold_orthonormal_(skip[:basis])
    means, rest = skip.flatten(1)[:channels] * k, skip.flatten(1)[basis:]
    rest = rest - rest @ means.T @ means
    rest = rest / rest.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rest.dtype).tiny)
    skip[basis:] = (rest / k).view_as(skip[basis:])


@torch.no_grad()
def keep_tangents_(skip: Tensor) -> None:
    """Reduce the gradient of such filters, in place, to what rotates the basis and turns the others without means."""
    if skip.grad is None:
        return
    channels, k, basis = skip.shape[1], skip.shape[-1], skip[0].numel()
    skip.grad[:basis] = rotations(skip[:basis], skip.grad[:basis])
    means, others, g = (t.flatten(1) for t in (skip[:channels] * k, skip[basis:] * k, skip.grad[basis:]))
    g = g - g @ means.T @ means
    g = g - (g * others).sum(1, keepdim=True) * others
    skip.grad[basis:] = g.view_as(skip[basis:])
