"""Decoded images of any sizes in one flat buffer: in memory, or mapped from a cache file that runs share.

    image n  =  buffer[offset_n : offset_n + C H_n W_n]  as (C, H_n, W_n)

Pixels stay as they were stored (bytes for photographs: 500 of 481 x 321 are 77 MB in gray), and a batch is
gathered from the buffer by index, on whatever device it lies.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import atomic

FULL_SCALE = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0, np.dtype(np.float32): 1.0}
VERSION = 3


class ImageStore:
    """Images of one channel count.

    Parameters
    ----------
    flat : array, shape (pixels,)
        uint8, uint16 or float32.
    shapes : array, shape (images, 3)
        Channels, heights and widths.
    full_scale : float, optional
        Stored integer that becomes 1; by default the largest of the type. Of floats, 1 is 1.
    device : device
        Where the buffer lies.
    """

    def __init__(self, flat: np.ndarray, shapes: np.ndarray, full_scale: float | None = None, device="cpu"):
        if flat.dtype not in FULL_SCALE:
            raise ValueError(f"pixels must be uint8, uint16 or float32, got {flat.dtype}")
        if len(set(shapes[:, 0])) != 1:
            raise ValueError(f"images must be some, all of as many channels, got {sorted(set(shapes[:, 0].tolist()))}")
        self.channels, lengths = int(shapes[0, 0]), shapes.prod(1)
        self.full_scale = full_scale if full_scale and flat.dtype != np.float32 else FULL_SCALE[flat.dtype]
        self.sizes = torch.from_numpy(shapes[:, 1:].copy())  # [images, 2]
        self.offsets = torch.from_numpy(np.cumsum(lengths) - lengths)  # [images]
        self._wide = flat.dtype == np.uint16  # torch gathers no uint16; as int16 it does
        self.buffer = torch.from_numpy(flat.view(np.int16) if self._wide else flat).to(device)

    def __len__(self) -> int:
        return len(self.sizes)

    @classmethod
    def of_arrays(cls, arrays: Sequence[np.ndarray], full_scale: float | None = None, device="cpu") -> "ImageStore":
        """A store of samples (C, H, W), which may differ in size and type (then they become float32)."""
        return cls(*_joined(arrays, full_scale), full_scale, device)

    @classmethod
    def cached(
        cls,
        key: object,
        folder: str | Path,
        arrays: Callable[[], Sequence[np.ndarray]],
        full_scale: float | None = None,
        device="cpu",
    ) -> "ImageStore":
        """The store of `key` mapped from its file in `folder`, which is written first if it is not there.

        Parameters
        ----------
        key : JSON-ready
            Everything the pixels depend on.
        folder : path
        arrays : callable
            Makes the samples.
        """
        digest = hashlib.sha256(json.dumps([VERSION, key]).encode()).hexdigest()[:20]
        paths = [Path(folder) / f"{digest}.{what}.npy" for what in ("pixels", "shapes")]
        if not all(path.exists() for path in paths):
            Path(folder).mkdir(parents=True, exist_ok=True)
            for path, array in zip(paths, _joined(arrays(), full_scale), strict=True):
                with atomic.replacing(path) as temporary, open(temporary, "wb") as file:
                    np.save(file, array)
        try:
            # copy on write: torch requires writable memory, the file stays unchanged
            return cls(np.load(paths[0], mmap_mode="c"), np.load(paths[1]), full_scale, device)
        except ValueError as error:
            raise ValueError(f"{paths[0]} is damaged ({error}); remove it, and it is made again") from error

    def image(self, index: int) -> Tensor:
        """Image `index`, float32 (C, H, W) in [0, 1]."""
        height, width = self.sizes[index].tolist()
        start = int(self.offsets[index])
        return self._values(self.buffer[start : start + self.channels * height * width]).view(-1, height, width)

    def gather(self, index: Tensor) -> Tensor:
        """Values at positions `index` of the buffer, float32, same shape."""
        return self._values(self.buffer[index])

    def _values(self, stored: Tensor) -> Tensor:
        if self._wide:
            stored = stored.to(torch.int32).bitwise_and_(0xFFFF)
        return stored.float() / self.full_scale


def _joined(arrays: Sequence[np.ndarray], full_scale: float | None) -> tuple[np.ndarray, np.ndarray]:
    """(flat pixels, shapes [images, 3])."""
    shapes = np.array([a.shape for a in arrays], np.int64).reshape(-1, 3)
    if len({a.dtype for a in arrays}) > 1:
        scales = {dtype: full_scale if full_scale and dtype.kind == "u" else one for dtype, one in FULL_SCALE.items()}
        arrays = [a.astype(np.float32) / np.float32(scales[a.dtype]) for a in arrays]
    return np.concatenate([a.reshape(-1) for a in arrays]), shapes
