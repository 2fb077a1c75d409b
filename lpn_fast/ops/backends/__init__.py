"""The backends, registered in order of preference when `lpn_fast` is imported."""

from .. import registry
from . import cpu, torch

registry.register_absent("cuda", "this version has no CUDA kernels; the torch backend runs on CUDA tensors")
registry.register_absent("triton", "this version has no Triton kernels; the torch backend runs on CUDA tensors")
cpu.register()
registry.register(torch.TorchBackend())
