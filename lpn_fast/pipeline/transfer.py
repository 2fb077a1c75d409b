"""Batches to the device and results back, beside the computation.

On a GPU a batch is gathered in pinned memory and copied on a stream of its own while the one before it is being
solved; results come back the same way. On a CPU nothing is copied.
"""

from dataclasses import fields, replace

import torch
from torch import Tensor

from .tasks import Restoration


class Transfer:
    """Copies for models whose parameters look like `own`."""

    def __init__(self, own: Tensor):
        self.device, self.dtype = own.device, own.dtype
        self._is_cuda = own.device.type == "cuda"
        self._up = torch.cuda.Stream(own.device) if self._is_cuda else None
        self._down = torch.cuda.Stream(own.device) if self._is_cuda else None

    def upload(self, samples: list[Tensor]) -> tuple[Tensor, object]:
        """([(n_i, c, h, w)] as one batch (sum n_i, c, h, w) on the device, what to wait for); any thread."""
        batch = (samples[0] if len(samples) == 1 else torch.cat(samples)).to(self.dtype)
        if not self._is_cuda:
            return batch, None
        with torch.cuda.stream(self._up):
            batch = batch.pin_memory().to(self.device, non_blocking=True)
            return batch, self._up.record_event()

    def arrived(self, batch: Tensor, event) -> Tensor:
        """The batch, for use on the current stream."""
        if event is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(event)
            batch.record_stream(stream)  # its memory belongs to the copying stream
        return batch

    def computed(self):
        """Mark the point after which a solution can be copied; for `download`."""
        return torch.cuda.current_stream(self.device).record_event() if self._is_cuda else None

    def download(self, solution: Restoration, event) -> Restoration:
        """The solution on the CPU; blocks the calling thread, not the device."""
        if event is None:
            return solution
        with torch.cuda.stream(self._down):
            self._down.wait_event(event)
            known = {f.name: getattr(solution, f.name) for f in fields(solution)}
            on_cpu = {name: t.to("cpu", non_blocking=True) for name, t in known.items() if t is not None}
        self._down.synchronize()
        return replace(solution, **on_cpu)

    def check_alive(self) -> None:
        """Raise a RuntimeError if the device does not answer: no further image can be done then."""
        if not self._is_cuda:
            return
        try:
            torch.zeros(1, device=self.device).item()
        except RuntimeError as error:
            raise RuntimeError(f"{self.device} does not answer any more; finished images are kept: {error}") from error
