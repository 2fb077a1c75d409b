"""What PyTorch is doing around a call: the short cuts of this package are for when it only computes."""

import torch
from torch.autograd import forward_ad


def is_eager() -> bool:
    """Whether nobody looks inside: no compiler or tracer, no torch.func transform, no forward mode."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack()
    )


def is_plain() -> bool:
    """Whether besides nobody records a graph: values are all that is wanted."""
    return not torch.is_grad_enabled() and is_eager()
