"""Memory of one launch as compiled code sees it: what is allocated, who touched it last, and copies under way.

Reported as `Fault`: an access outside of every allocation or off its alignment; two warps at one byte, of which one
writes another value, with no barrier between them (vector clocks: a barrier makes its warps know all that any of them
has done); two blocks at one byte likewise, as nothing orders blocks; and a byte touched while `cp.async` may still be
bringing it. Lanes of a warp go in step here, so what they owe each other is not seen.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

BASE, GAP = 1 << 20, 1 << 12  # of addresses; bytes between two allocations, which nobody may touch


class Fault(Exception):
    """What a device would not have stood, or answered with another result."""


class Clocks:
    """What every warp of a block knows of the others: [warp, other] is the time up to which, its own is the present."""

    def __init__(self, warps: int, block: int):
        self.known = np.eye(warps, dtype=np.int32)
        self.block = block

    def join(self, warps: np.ndarray) -> None:
        self.known[warps] = self.known[warps].max(0)
        self.known[warps, warps] += 1


class Space:
    """Bytes with the times of their accesses."""

    def __init__(self, content: np.ndarray, name: str = "what is allocated"):
        self.content, self.name = content, name
        self.pending = np.zeros(len(content), bool)  # a copy to it is under way
        self.last = np.full(len(content), -1, np.int32)  # the block that wrote it
        self.readers: dict[int, np.ndarray] = {}  # block -> that it has read it
        self.clocks = None

    def enter(self, clocks: Clocks) -> None:
        """A block begins."""
        self.clocks = clocks
        self.written, self.writer = np.zeros((2, len(self.content)), np.int32)
        self.read = np.zeros((len(clocks.known), len(self.content)), np.int32)
        self.readers[clocks.block] = np.zeros(len(self.content), bool)

    def check(self, offsets: np.ndarray, size: int, what: str) -> np.ndarray:
        """Places [accesses, size] of accesses that are in bounds."""
        if offsets.min() < 0 or offsets.max() + size > len(self.content):
            raise Fault(f"an access outside of {self.name}: {what}")
        if (offsets % size).any():
            raise Fault(f"an access off its alignment: {what}")
        return offsets[:, None] + np.arange(size)

    def load(self, offsets: np.ndarray, size: int, warps: np.ndarray, what: str) -> np.ndarray:
        """Bytes [accesses, size]."""
        at, known, mine = self.check(offsets, size, what), self.clocks.known, warps[:, None]
        if self.pending[at].any():
            raise Fault(f"read while a copy is under way: {what}")
        if (self.written[at] > known[mine, self.writer[at]]).any():
            raise Fault(f"read without a barrier after another warp's write: {what}")
        if ((self.last[at] >= 0) & (self.last[at] != self.clocks.block)).any():
            raise Fault(f"read what another block has written: {what}")
        self.read[mine, at] = known[mine, mine]
        self.readers[self.clocks.block][at] = True
        return self.content[at]

    def store(self, offsets: np.ndarray, data: np.ndarray, warps: np.ndarray, what: str) -> None:
        at, known, mine = self.check(offsets, data.shape[1], what), self.clocks.known, warps[:, None]
        if self.pending[at].any():
            raise Fault(f"written while a copy is under way: {what}")
        changes = self.content[at] != data
        theirs = self.written[at] > known[mine, self.writer[at]]
        for warp, read in enumerate(self.read):
            theirs |= read[at] > known[mine, warp]
        if (theirs & changes).any():
            raise Fault(f"written without a barrier after another warp's access: {what}")
        others = (self.last[at] >= 0) & (self.last[at] != self.clocks.block)
        for block, read in self.readers.items():
            others |= read[at] & (block != self.clocks.block)
        if (others & changes).any():
            raise Fault(f"written what another block has touched: {what}")
        self.content[at], self.written[at], self.writer[at] = data, known[mine, mine], mine
        self.last[at] = self.clocks.block
        if (self.content[at] != data).any():
            raise Fault(f"two threads write different values to one place: {what}")


@dataclass
class Memory:
    """Allocations of the device at addresses of their own."""

    bases: list[int] = field(default_factory=list)
    spaces: list[Space] = field(default_factory=list)
    _placed: dict[int, int] = field(default_factory=dict)  # address on the host -> here

    def add(self, content: np.ndarray) -> int:
        end = self.bases[-1] + len(self.spaces[-1].content) if self.bases else BASE
        self.bases.append(-(-(end + GAP) // 256) * 256)
        self.spaces.append(Space(content))
        return self.bases[-1]

    def address_of(self, tensor: torch.Tensor | None) -> int:
        """Where a tensor of the CPU lies on the device, by whose kernels it is read and written; 0 for None."""
        if tensor is None:
            return 0
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._placed:
            content = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
            self._placed[storage.data_ptr()] = self.add(content)
        return self._placed[storage.data_ptr()] + tensor.storage_offset() * tensor.element_size()

    def begin(self) -> None:
        """A launch begins: earlier ones have ended."""
        for space in self.spaces:
            space.last[:], space.readers = -1, {}

    def at(self, addresses: np.ndarray, what: str) -> tuple[Space, np.ndarray]:
        """(the allocation, offsets in it) of accesses, which all go to one."""
        which = int(np.searchsorted(self.bases, addresses[0], "right")) - 1
        if which < 0:
            raise Fault(f"an access outside of what is allocated: {what}")
        return self.spaces[which], addresses.astype(np.int64) - self.bases[which]
