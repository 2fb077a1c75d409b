"""What a call may not do if a CUDA graph is to capture it: wait for the device's results, which CPU tensors hide."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = (
    torch.ops.aten._local_scalar_dense.default,  # item(), bool(), float()
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.unique_dim.default,
)


class NoWaiting(TorchDispatchMode):
    """Raises where an operation inside would make the host wait."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in WAITS:
            raise AssertionError(f"{function} waits for the device")
        return function(*args, **(kwargs or {}))
