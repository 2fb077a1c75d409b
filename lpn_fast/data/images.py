"""Images as samplers of clean crops.

Every image is decoded once, into one flat buffer, image n as buffer[offset_n : offset_n + C H_n W_n]; a batch is
gathered from there, on the device that holds it. Pixels stay as they were stored (bytes for photographs: 500 of
481 x 321 are 77 MB in gray). All randomness comes from the generator that the trainer hands in.
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..io import Range
from ..io.image import LEAST_SHARE
from .augment import Augment, symmetry_table
from .readers import Item, Reader, find_items

MOST_NAMED = 5  # samples that cannot be used
FULL_SCALE = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0, np.dtype(np.float32): 1.0}


class ImageStore:
    """Images of one channel count.

    Parameters
    ----------
    arrays : sequence of array, shapes (C, H, W)
        uint8, uint16 or float32; sizes may differ, and so may types, which then become float32.
    full_scale : float, optional
        Stored integer that becomes 1; by default the largest of the type. Of floats, 1 is 1.
    device : device
        Where the buffer lies.
    """

    def __init__(self, arrays: Sequence[np.ndarray], full_scale: float | None = None, device="cpu"):
        shapes, dtypes = np.array([a.shape for a in arrays], np.int64).reshape(-1, 3), {a.dtype for a in arrays}
        if not dtypes <= FULL_SCALE.keys():
            raise ValueError(f"pixels must be uint8, uint16 or float32, got {sorted(map(str, dtypes))}")
        if len(set(shapes[:, 0])) != 1:
            raise ValueError(f"images must be some, all of as many channels, got {sorted(set(shapes[:, 0].tolist()))}")
        scales = {dtype: full_scale if full_scale and dtype.kind == "u" else one for dtype, one in FULL_SCALE.items()}
        if len(dtypes) > 1:
            arrays = [a.astype(np.float32) / np.float32(scales[a.dtype]) for a in arrays]
        flat, lengths = np.concatenate([a.reshape(-1) for a in arrays]), shapes.prod(1)
        self.channels, self.full_scale = int(shapes[0, 0]), scales[flat.dtype]
        self.sizes = torch.from_numpy(shapes[:, 1:].copy())  # [images, 2]
        self.offsets = torch.from_numpy(np.cumsum(lengths) - lengths)  # [images]
        self._wide = flat.dtype == np.uint16  # torch gathers no uint16; as int16 it does
        self.buffer = torch.from_numpy(flat.view(np.int16) if self._wide else flat).to(device)

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, index: int) -> Tensor:
        """Image `index`, float32 (C, H, W) in [0, 1]."""
        height, width = self.sizes[index].tolist()
        start = int(self.offsets[index])
        return self.gather(slice(start, start + self.channels * height * width)).view(-1, height, width)

    def gather(self, index: Tensor | slice) -> Tensor:
        """Values at positions `index` of the buffer, float32, same shape."""
        stored = self.buffer[index]
        if self._wide:
            stored = stored.to(torch.int32).bitwise_and_(0xFFFF)
        return stored.float() / self.full_scale


class ImageCrops:
    """Sampler of random crops: `crops(count, generator)` -> (count, channels, crop, crop) in [0, 1].

    Parameters
    ----------
    sources : list of path
        Images, arrays, archives or folders of them; see `lpn_fast.data.find_items`.
    crop : int, optional
        Side of a crop in pixels. Images smaller than that are an error that names them. None takes whole
        images, which must then be squares of one size.
    channels : 1 or 3
        Gray (ITU-R 601 luma) or colour.
    exclude, recursive
        As for `find_items`.
    augment : Augment, optional
        What is varied; the eight symmetries of the square unless told otherwise.
    centre : int, optional
        Only the centre of every image is used, a square of so many pixels.
    samples : (int, int), optional
        Only samples first <= n < last of the sources, in their order.
    window : (low, high), "own" or None
        What becomes 0 and 1 of the values of DICOM files; the slice's own range; or as jobs have it, see WINDOWS.
    intensities : (low, high), optional
        Stored numbers that become 0 and 1, of files other than DICOM: (0, 4095) for 12 bits in a 16-bit file. None is
        what their type says.
    skip_broken : bool
        Warn of unreadable and small files, naming them, instead of raising.
    device : device
        Where the pixels lie and the crops are cut.

    Raises
    ------
    ValueError
        No image found, an unreadable or too small image, bad crop or channels.

    Examples
    --------
    >>> crops = ImageCrops(["photos"], crop=64)  # doctest: +SKIP
    >>> crops(16, torch.Generator()).shape  # doctest: +SKIP
    torch.Size([16, 1, 64, 64])
    """

    def __init__(
        self,
        sources: list[str | Path],
        crop: int | None = 64,
        channels: int = 1,
        exclude: list[str] | None = None,
        *,
        augment: Augment | None = None,
        centre: int | None = None,
        samples: tuple[int, int] | None = None,
        recursive: bool = False,
        window: Range | str | None = None,
        intensities: Range | None = None,
        skip_broken: bool = False,
        device: str | torch.device = "cpu",
    ):
        if crop is not None and crop < 1:
            raise ValueError(f"crop must be at least 1, got {crop}")
        read, augment = Reader(channels, window, intensities), augment or Augment()
        items = find_items(sources, exclude, recursive)
        if samples is not None:
            first, last = samples
            if not 0 <= first < last:
                raise ValueError(f"samples must be an increasing pair from 0 on, got {samples}")
            items = items[first:last]
            if not items:
                raise ValueError(f"samples must lie within the sources, got {samples}")
        store = ImageStore(_decoded(items, read, crop, centre, skip_broken), read.full_scale, device)
        names = sorted(item.name for item in items)
        self._start(store, crop, augment, names, channels, centre, window, intensities, skip_broken)

    @classmethod
    def of_store(cls, store: ImageStore, crop: int | None, augment: Augment, fingerprint: str) -> "ImageCrops":
        """A sampler of images that are already there."""
        crops = cls.__new__(cls)
        crops._start(store, crop, augment, fingerprint)
        return crops

    def _start(self, store: ImageStore, crop: int | None, augment: Augment, *told: object) -> None:
        text = json.dumps([*told, crop, astuple(augment)])
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        heights, widths = store.sizes.unbind(1)
        if crop is None:
            crop = int(heights[0])
            if not ((heights == crop) & (widths == crop)).all():
                raise ValueError("crop must be given: the images are not squares of one size")
        elif (smallest := int(store.sizes.min())) < crop:
            raise ValueError(f"crop must fit into every image, the smallest side is {smallest}, got {crop}")
        self.store, self.crop, self.augment = store, crop, augment
        self._places = symmetry_table(crop)  # [8, crop^2]

    def __len__(self) -> int:
        return len(self.store)

    def __call__(self, count: int, generator: torch.Generator, rows: slice = slice(None)) -> Tensor:
        """Crops, float32 (count, channels, crop, crop); with `rows`, those of a batch of `count`."""
        which = torch.randint(len(self.store), (count,), generator=generator)[rows]
        where = torch.rand(count, 2, generator=generator)[rows].double()
        turns = self.augment.turns(count, generator)[rows]
        drawn = {name: values[rows] for name, values in self.augment.draw(count, generator).items()}
        sizes = self.store.sizes[which]  # [n, 2]
        corner = (where * (sizes - self.crop + 1)).long()  # [n, 2]
        device, width = self.store.buffer.device, sizes[:, 1]
        start = self.store.offsets[which] + corner[:, 0] * width + corner[:, 1]
        planes = torch.arange(self.store.channels) * sizes.prod(1, keepdim=True)  # [n, C]
        start, width = (start[:, None] + planes).to(device), width.to(device)
        places = self._places.to(device)[turns.to(device)]  # [n, crop^2]
        inside = places // self.crop * width[:, None] + places % self.crop
        index = start[:, :, None] + inside[:, None]  # [n, C, crop^2]
        batch = self.store.gather(index).view(*index.shape[:2], self.crop, self.crop)
        return self.augment.apply(batch, drawn)


def validation_batch(sources: list[str | Path], channels: int = 1, side: int = 160, **options) -> Tensor:
    """Centre crops of every image, float32 (count, channels, side, side); options and errors as for `ImageCrops`."""
    crops = ImageCrops(sources, side, channels, centre=side, **options)
    return torch.stack([crops.store.image(index) for index in range(len(crops))])


def _decoded(items: list[Item], read: Reader, crop: int | None, centre: int | None, skip: bool) -> list[np.ndarray]:
    """The samples, or their centres; those that cannot be used raise a ValueError, or are left out with a warning."""
    arrays, broken = [], []
    for item in items:
        try:
            array = item.read(read)
            for what, side in (("centre", centre), ("crop", crop)):
                if min(array.shape[1:]) < (side or 0):
                    raise ValueError(f"{item.name} is {array.shape[1:]} pixels, smaller than the {what} of {side}")
            if centre is not None:
                top, left = ((n - centre) // 2 for n in array.shape[1:])
                array = array[:, top : top + centre, left : left + centre]
            arrays.append(array)
        except ValueError as error:
            broken.append(str(error))
    named = "; ".join(broken[:MOST_NAMED])
    named += f"; and {len(broken) - MOST_NAMED} more" if len(broken) > MOST_NAMED else ""
    if not arrays:
        raise ValueError(f"none of {len(items)} samples could be read: {named}")
    if broken and not skip:
        raise ValueError(f"{len(broken)} of {len(items)} samples cannot be used (skip_broken?): {named}")
    if broken:
        warnings.warn(f"{len(broken)} samples left out: {named}", RuntimeWarning, stacklevel=4)
    read.check_options()
    scales = [1 if a.dtype == np.float32 else read.full_scale or np.iinfo(a.dtype).max for a in arrays]
    spans = [float(a.max()) - float(a.min()) for a in arrays]  # over a small part of the range: not that of the data
    narrow = sum(0 < span < LEAST_SHARE * scale for span, scale in zip(spans, scales, strict=True))
    if narrow:
        text = f"{narrow} of {len(arrays)} samples use under {LEAST_SHARE:g} of their range; give intensities or window"
        warnings.warn(text, RuntimeWarning, stacklevel=4)
    return arrays
