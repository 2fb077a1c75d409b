"""Adam whose step ends on W, w, g >= 0, in one pass over memory.

    m += (1 - beta1) (grad - m),     v = beta2 v + (1 - beta2) grad^2,                       c_i = 1 - beta_i^t
    p  = P( p - lr / c1  m / (sqrt(v / c2) + eps) ),     P(p) = max(p, 0) where p must not be negative

float32 on the CPU takes one C++ call for all parameters (csrc/cpu/isa/adam.h): 28 bytes of traffic per parameter,
where Adam's seven operations and the clamp move 80. Everything else runs torch's foreach Adam and a clamp.
Both do the arithmetic of torch.optim.Adam in its order. The one difference: the C++ call rounds the square
root correctly, which torch's does to one unit in the last place, so p may differ by that much of its step.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from ..algebra.parameters import layout
from ..networks import LPN

try:
    from .. import _cpu
except ImportError:  # a source tree that was never built: the foreach path serves
    _cpu = None

_UNSUPPORTED = ("weight_decay", "amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay")


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
        Flags missing, superfluous or of another number than the parameters; at a step, options that a loaded
        state brought and this optimizer has not (weight decay, amsgrad, maximize).

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
        self._nonnegative = nonnegative  # in the order of the one parameter group

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
        _check(group)
        table, stepped, others = [], [], []  # table: the rows of the C++ call, for the parameters in `stepped`
        for p, flag in zip(group["params"], self._nonnegative, strict=True):
            grad = p.grad
            if grad is None:
                continue
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            exp_avg, exp_avg_sq, step = state["exp_avg"], state["exp_avg_sq"], state["step"]
            if _fusable(p, grad, exp_avg, exp_avg_sq, step):
                table += (p.data_ptr(), grad.data_ptr(), exp_avg.data_ptr(), exp_avg_sq.data_ptr(), step.data_ptr())
                table += (p.numel(), flag)
                stepped.append(p)
            else:
                others.append((p, grad, exp_avg, exp_avg_sq, step, flag))
        if stepped:
            beta1, beta2 = group["betas"]
            rates = [float(rate) for rate in (group["lr"], beta1, beta2, group["eps"])]
            _cpu.adam_step(table, *rates, torch.get_num_threads())
            # autograd would not notice that what it saved has changed
            torch.autograd.graph.increment_version(stepped)
        if others:
            _foreach_step(others, group)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch.optim.Adam; forgetting the gradients, the default, costs next to nothing."""
        if not set_to_none:
            return super().zero_grad(set_to_none=False)
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None


def _check(group: dict) -> None:
    for name in _UNSUPPORTED:
        if group.get(name):
            raise ValueError(f"ProjectedAdam has no {name}, got {group[name]}; use torch.optim.Adam and project_()")


def _fusable(p: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor) -> bool:
    """Whether the C++ call can take the tensor: float32 on the CPU, without gaps, laid out alike."""
    if _cpu is None or not p.is_cpu or grad.layout is not torch.strided:
        return False
    for t in (p, grad, exp_avg, exp_avg_sq, step):
        if t.dtype is not torch.float32:
            return False
    if p.is_contiguous():
        return grad.is_contiguous() and exp_avg.is_contiguous() and exp_avg_sq.is_contiguous()
    if not p.is_contiguous(memory_format=torch.channels_last):
        return False
    strides = p.stride()
    return grad.stride() == strides and exp_avg.stride() == strides and exp_avg_sq.stride() == strides


def _foreach_step(entries: list[tuple], group: dict) -> None:
    parameters, gradients, exp_avgs, exp_avg_sqs, steps, flags = (list(column) for column in zip(*entries, strict=True))
    beta1, beta2 = group["betas"]
    adam(
        parameters, gradients, exp_avgs, exp_avg_sqs, [], steps, foreach=True, amsgrad=False, beta1=beta1,
        beta2=beta2, lr=group["lr"], weight_decay=0.0, eps=group["eps"], maximize=False,
    )  # fmt: skip
    constrained = [p for p, flag in zip(parameters, flags, strict=True) if flag]
    if constrained:
        torch._foreach_clamp_min_(constrained, 0.0)
