"""Training in several processes (torchrun), each with its share of every batch.

    gradient in P  =  mean over processes of  grad_P (mean over the share)        = gradient of the whole batch

Every process draws the random numbers of the whole batch from the one generator and keeps its rows, so a run
does not depend on the number of processes but for rounding, and a resume file fits any number.

The mean is taken of the gradient in the packed vector P, by a hook, before it goes back through the projection
onto W, w, g >= 0: there a clamped weight takes its gradient only if that would raise it (ops/packing.py), a rule
that is not linear. Averages of gradients of the parameters, as torch's DistributedDataParallel takes them, would
let weights leave zero that the whole batch keeps there. And P is one vector, whose gradient leaves the backward
pass in one piece: one all-reduce, with nothing to overlap.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..networks import LPN


@dataclass(frozen=True)
class Group:
    """The processes that train one model together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process' rows of a batch of `count`, which the size divides."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    @contextmanager
    def averaged_gradients(self, model: LPN) -> Iterator[None]:
        """Within the block, gradients of `model` are means over processes."""
        if self.size == 1:
            yield
            return

        model.packed_hook = self.mean
        try:
            yield
        finally:
            model.packed_hook = None

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over processes."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total / self.size

    def agree(self, flag: bool, device: torch.device) -> bool:
        """Whether `flag` holds in every process."""
        if self.size == 1:
            return flag
        votes = torch.tensor(float(flag), device=device)
        dist.all_reduce(votes, op=dist.ReduceOp.MIN)
        return bool(votes.item())

    def check_same(self, number: int, what: str, device: torch.device) -> None:
        """RuntimeError if `number` differs between processes."""
        if self.size == 1:
            return
        low, high = (torch.tensor(float(number), device=device, dtype=torch.float64) for _ in range(2))
        dist.all_reduce(low, op=dist.ReduceOp.MIN)
        dist.all_reduce(high, op=dist.ReduceOp.MAX)
        if low != high:
            raise RuntimeError(
                f"{what} must be the same in all processes, got {low:.0f} to {high:.0f}; "
                "the output folder must be one that all of them see"
            )


def current_group() -> Group:
    """The group this process has joined, or one of its own."""
    if dist.is_available() and dist.is_initialized():
        return Group(dist.get_rank(), dist.get_world_size())
    return Group()


def launched_by_torchrun() -> bool:
    """Whether the environment describes a group of more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(device: str) -> torch.device:
    """Join torchrun's group, with NCCL on CUDA devices and gloo elsewhere; the device of this process."""
    if device == "cuda":
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
        dist.init_process_group("nccl")
        return chosen
    dist.init_process_group("gloo")
    return torch.device(device)


def leave() -> None:
    """Leave the group that `join` joined."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
