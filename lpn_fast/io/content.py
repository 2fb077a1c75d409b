"""What is looked for in files that hold many images, and how one of them is named."""

from dataclasses import dataclass

import numpy as np

PLANES = (1, 3)


@dataclass(frozen=True)
class Member:
    """One image of a container.

    Attributes
    ----------
    name : str
        Of the array or file in it; "" for the one array of a .npy, TIFF or idx file.
    index : int or None
        Position in a stack, or among the files of one name that a .zip may hold.
    """

    name: str
    index: int | None = None

    def __str__(self) -> str:
        return self.name if self.index is None else f"{self.name}[{self.index}]"


@dataclass(frozen=True)
class Images:
    """What is looked for in a container: arrays that are images, or stacks of them."""

    any_type: bool = False  # those of a type that does not say what 0 and 1 are as well; labels, most often

    def suits(self, dtype: np.dtype) -> bool:
        """Whether numbers of that type can be some."""
        has_range = dtype.kind == "f" or (dtype.kind == "u" and dtype.itemsize <= 2)
        return has_range or (self.any_type and dtype.kind in "iu")

    def is_stack(self, shape: tuple[int, ...]) -> bool | None:
        """None for no such array: (H, W), (C, H, W) and (H, W, C) are images, the last one to be refused."""
        if not 2 <= len(shape) <= 4:
            return None
        return len(shape) == 4 or (len(shape) == 3 and shape[0] not in PLANES and shape[-1] not in PLANES)


@dataclass(frozen=True)
class Arrays:
    """What is looked for in a container: measurements that are no images, of so many axes, or stacks of them."""

    dims: int
    is_complex: bool = False

    def suits(self, dtype: np.dtype) -> bool:
        """Whether numbers of that type can be some."""
        return dtype.kind == "c" if self.is_complex else dtype.kind in "fiu"

    def is_stack(self, shape: tuple[int, ...]) -> bool | None:
        """None for no such array."""
        return len(shape) > self.dims if self.dims <= len(shape) <= self.dims + 1 else None


Content = Images | Arrays
IMAGES = Images()
Listing = tuple[list[Member], list[str]]  # what was looked for, and what else there is
