"""Named precisions: how a backend stores activations and multiplies; what crosses the operators never changes.

    fp32   products and storage in the tensors' own type (float64 tensors stay float64); never a silent TF32
    tf32   storage float32, products in TF32 (GPU tensor cores)
    fp16   storage and products in half precision, sums in float32
    bf16   storage and products in bfloat16, sums in float32

x, v, P, f, psi and all gradients keep their dtype. Weights are rounded once, where they are packed for a
kernel, and rounded non-negative weights are just other non-negative weights: what is rounded *between* the
sweeps is what bends exactness (README, "What is guaranteed").
"""

import torch

from ..algebra.spec import Spec
from ..contract import check_name

PRECISIONS = ("fp32", "tf32", "fp16", "bf16")


def checked(precision: str) -> str:
    """`precision` itself, if it is one of PRECISIONS."""
    check_name("precision", precision, PRECISIONS)
    return precision


def storage(spec: Spec, precision: str, dtype: torch.dtype) -> torch.dtype:
    """The type in which activations of a network are stored for tensors of `dtype`.

    Those of gates that compete stay wide: the soft maximum lives on differences near one of energies in the hundreds.
    """
    if spec.stages[-1].competing:
        return dtype
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, dtype)
