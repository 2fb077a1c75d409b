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
VERSION = 2


class ImageStore:
    """Images of one channel count.

    Parameters
    ----------
    flat : array, shape (pixels,)
        uint8, uint16 or float32.
    sizes : array, shape (images, 2)
        Heights and widths.
    channels : int
    full_scale : float, optional
        Stored integer that becomes 1; by default the largest of the type. Of floats, 1 is 1.
    device : device
        Where the buffer lies.
    """

    def __init__(self, flat: np.ndarray, sizes, channels: int, full_scale: float | None = None, device="cpu"):
        if flat.dtype not in FULL_SCALE:
            raise ValueError(f"pixels must be uint8, uint16 or float32, got {flat.dtype}")
        if full_scale is not None and not full_scale > 0:
            raise ValueError(f"full_scale must be positive, got {full_scale}")
        self.channels = channels
        self.full_scale = full_scale if full_scale and flat.dtype != np.float32 else FULL_SCALE[flat.dtype]
        sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
        self.sizes = torch.from_numpy(sizes)  # [images, 2]
        lengths = channels * sizes[:, 0] * sizes[:, 1]
        self.offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64))  # [images]
        self._wide = flat.dtype == np.uint16  # torch gathers no uint16; as int16 it does
        self.buffer = torch.from_numpy(flat.view(np.int16) if self._wide else flat).to(device)

    def __len__(self) -> int:
        return len(self.sizes)

    @classmethod
    def of_arrays(cls, arrays: Sequence[np.ndarray], full_scale: float | None = None, device="cpu") -> "ImageStore":
        """A store of samples (C, H, W), which may differ in size and type (then they become float32)."""
        flat, sizes, channels = _joined(arrays, full_scale)
        return cls(flat, sizes, channels, full_scale, device)

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
        folder, digest = Path(folder), hashlib.sha256(json.dumps([VERSION, key]).encode()).hexdigest()[:20]
        header, pixels = folder / f"{digest}.json", folder / f"{digest}.pixels"
        if not (header.exists() and pixels.exists()):
            folder.mkdir(parents=True, exist_ok=True)
            flat, sizes, channels = _joined(arrays(), full_scale)
            with atomic.replacing(pixels) as temporary:
                flat.tofile(temporary)
            about = {"dtype": flat.dtype.name, "sizes": sizes.tolist(), "channels": channels, "pixels": flat.size}
            atomic.write(header, json.dumps(about).encode())
        about = json.loads(header.read_text())
        dtype = np.dtype(about["dtype"])
        if pixels.stat().st_size != about["pixels"] * dtype.itemsize:
            raise ValueError(f"{pixels} must hold {about['pixels']} values of {dtype}; remove it, and it is made again")
        # copy on write: torch requires writable memory, the file stays unchanged
        flat = np.memmap(pixels, dtype, mode="c")
        return cls(flat, about["sizes"], about["channels"], full_scale, device)

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


def _joined(arrays: Sequence[np.ndarray], full_scale: float | None) -> tuple[np.ndarray, np.ndarray, int]:
    """(flat pixels, sizes [images, 2], channels)."""
    if not len(arrays):
        raise ValueError("arrays must hold at least one image, got none")
    channels = {a.shape[0] for a in arrays}
    if len(channels) > 1:
        raise ValueError(f"all images must have as many channels, got {sorted(channels)}")
    if len({a.dtype for a in arrays}) > 1:
        scales = FULL_SCALE | (
            dict.fromkeys((np.dtype(np.uint8), np.dtype(np.uint16)), full_scale) if full_scale else {}
        )
        arrays = [a.astype(np.float32) / np.float32(scales[a.dtype]) for a in arrays]
    flat = np.concatenate([np.ascontiguousarray(a).reshape(-1) for a in arrays])
    return flat, np.array([a.shape[1:] for a in arrays]), channels.pop()
