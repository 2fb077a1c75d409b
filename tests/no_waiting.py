"""What a call may not do if a CUDA graph is to capture it, seen without a device.

`NoWaiting` raises where the host would wait for results, and where data would cross devices. On CPU tensors nothing
crosses; device "meta" has tensors without data, and stands in for a device that is not there (test_fake_device.py).
"""

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = (
    torch.ops.aten._local_scalar_dense.default,  # item(), bool(), float()
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.unique_dim.default,
)
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


FROM_HOST = (torch.tensor, torch.as_tensor, torch.asarray)


class _NothingFromTheHost(TorchFunctionMode):
    """Raises where numbers of Python's would be copied to a device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        device = (kwargs or {}).get("device")
        if function in FROM_HOST and device is not None and torch.device(device).type != "cpu":
            raise AssertionError(f"{function.__name__} copies from the host to {device}, and waits")
        return function(*args, **(kwargs or {}))


class NoWaiting(TorchDispatchMode):
    """Raises where an operation inside would make the host wait; `devices` are those of all results."""

    def __init__(self):
        super().__init__()
        self.devices: set[str] = set()
        self._host = _NothingFromTheHost()

    def __enter__(self):
        self._host.__enter__()
        return super().__enter__()

    def __exit__(self, *failure):
        super().__exit__(*failure)
        self._host.__exit__(*failure)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in WAITS:
            raise AssertionError(f"{function} waits for the device")
        result = function(*args, **(kwargs or {}))
        tensors = [t for t in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(t, Tensor)]
        self.devices |= {str(t.device) for t in tensors}
        if function in COPIES:
            devices = {str(t.device) for t in (*args, *tensors) if isinstance(t, Tensor)}
            if len(devices) > 1:
                raise AssertionError(f"{function} copies between {sorted(devices)}")
        return result


def moved(model: nn.Module, device: str) -> nn.Module:
    """The model with parameters and buffers on `device`, in place, without their values."""
    for module in model.modules():
        for name, t in module._parameters.items():
            module._parameters[name] = None if t is None else nn.Parameter(torch.empty(t.shape, device=device))
        for name, t in module._buffers.items():
            module._buffers[name] = torch.empty(t.shape, dtype=t.dtype, device=device)
    return model
