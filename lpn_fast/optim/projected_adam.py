"""Adam whose step ends on W, w, g >= 0.

    m += (1 - beta1) (grad - m),     v = beta2 v + (1 - beta2) grad^2,                       c_i = 1 - beta_i^t
    p  = P( p - lr / c1  m / (sqrt(v / c2) + eps) ),     P(p) = max(p, 0) where p must not be negative

The step is that of torch.optim.Adam, bit for bit: on the CPU its fused one, a single pass over memory.
"""

import inspect
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..algebra.parameters import layout
from ..networks import LPN

# The fused step makes the threads meet once for every parameter; up to so many entries that takes longer than they do,
# and many times as long where the threads have to wait for a processor.
SERIAL = 1 << 15
_CHANNELS_LAST = (torch.channels_last, torch.channels_last_3d)  # without gaps, as contiguous tensors are


class ProjectedAdam(torch.optim.Adam):
    """Adam for learned proximal networks: the trajectory of torch.optim.Adam followed by `model.project_()`.

    Its state_dict is that of `torch.optim.Adam(model.parameters())` and either loads the other's.

    Parameters
    ----------
    model : LPN, or iterable of Parameter
        An LPN knows which of its parameters must not be negative.
    nonnegative : iterable of bool, optional
        One flag per parameter, where parameters are given; not allowed with an LPN.
    lr, betas, eps
        As torch.optim.Adam, which says what is refused.

    Raises
    ------
    ValueError
        Flags missing, superfluous or of another number than the parameters.

    Examples
    --------
    >>> import torch, lpn_fast as lf
    >>> from lpn_fast.optim import ProjectedAdam
    >>> model = lf.MLPLPN(dim=2, hidden=8, layers=1)
    >>> optimizer = ProjectedAdam(model, lr=1e-3)
    >>> model(torch.randn(5, 2)).square().mean().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        model: LPN | Iterable[nn.Parameter],
        nonnegative: Iterable[bool] | None = None,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        if isinstance(model, nn.Module):
            if not isinstance(model, LPN) or nonnegative is not None:
                raise ValueError("give an LPN alone, or parameters and one nonnegative flag for each")
            flags = {slot.name: slot.nonnegative for slot in layout(model.spec)}
            named = list(model.named_parameters())
            parameters, nonnegative = [p for _, p in named], [flags[name] for name, _ in named]
        else:
            parameters = list(model)
            nonnegative = None if nonnegative is None else [bool(flag) for flag in nonnegative]
            if nonnegative is None or len(nonnegative) != len(parameters):
                seen = "none" if nonnegative is None else len(nonnegative)
                raise ValueError(f"nonnegative must hold one flag for each of {len(parameters)} parameters, got {seen}")
        super().__init__(parameters, lr=lr, betas=betas, eps=eps)
        self._nonnegative = [p for p, flag in zip(parameters, nonnegative, strict=True) if flag]

    def add_param_group(self, param_group: dict) -> None:
        """Not after construction: a new group would have no flags."""
        if self.param_groups:
            raise ValueError("ProjectedAdam has one parameter group; build another optimizer for other parameters")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure=None) -> Tensor | None:
        """One step on every parameter that has a gradient; returns the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        (group,) = self.param_groups
        # None leaves the choice to torch, which takes its foreach step on a GPU
        group["fused"] = True if not group["amsgrad"] and self._can_fuse(group["params"]) else None
        threads = torch.get_num_threads()
        small = group["fused"] and threads > 1 and max(map(torch.numel, group["params"])) <= SERIAL
        if small:
            torch.set_num_threads(1)
        try:
            # the bare step: torch wraps that of either class to call the hooks, which would then run twice
            inspect.unwrap(torch.optim.Adam.step)(self)
        finally:
            if small:
                torch.set_num_threads(threads)
        if self._nonnegative:
            torch._foreach_clamp_min_(self._nonnegative, 0.0)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch.optim.Adam, without its entry in profiles, which takes longer than to forget the gradients."""
        if not set_to_none:
            return super().zero_grad(set_to_none=False)
        for p in self.param_groups[0]["params"]:
            p.grad = None

    def _can_fuse(self, parameters: list[Tensor]) -> bool:
        """Whether torch's fused step on the CPU gives Adam's: it indexes all arrays alike, whatever their strides."""
        for p in parameters:
            if p.grad is not None:
                strides, state = p.stride(), self.state.get(p)
                if not p.is_cpu or p.grad.stride() != strides:
                    return False
                if state and not state["exp_avg"].stride() == state["exp_avg_sq"].stride() == strides:
                    return False
                if not (p.is_contiguous() or any(p.is_contiguous(memory_format=form) for form in _CHANNELS_LAST)):
                    return False
        return True
