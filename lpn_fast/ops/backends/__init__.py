"""The backends, registered in order of preference when `lpn_fast` is imported."""

from .. import registry
from . import cpu, cuda, torch, triton

cuda.register()
triton.register()
cpu.register()
registry.register(torch.TorchBackend())
