"""Images that come as cells of a table: the bytes of a file, or an array, which stands for the .npy file that holds it.

cell                                    decoded, and its result encoded, as
bytes, of any format in io/formats.py   the file; the column of names says its suffix, where the content does not
array (H, W), (1, H, W) or (3, H, W)    the .npy file of that array: stored numbers and their type are kept
"""

import hashlib
from pathlib import Path

import numpy as np

from ..io import Encoding, Image, Range, UnreadableImage, formats
from ..io.image import one_line
from ..io.sources import Source


class Cell:
    """What `io.sources.Source` is for a file: something to be read, with a name.

    Parameters
    ----------
    index : int
        Of the row in its batch.
    value : bytes or array
    name : str, optional
        Of the file that the bytes come from.

    Examples
    --------
    >>> Cell(0, np.zeros((4, 5), np.uint8)).read()[0].pixels.shape
    torch.Size([1, 4, 5])
    """

    member = None

    def __init__(self, index: int, value, name: str | None = None):
        self.index, self.value = index, value
        self.is_array = not isinstance(value, bytes | bytearray | memoryview)
        self.item = f"{index}.npy" if self.is_array or not name else str(name)
        self.path = Path(self.item)

    def bytes(self) -> bytes:
        """Those of the file; UnreadableImage for a cell that holds nothing of the kind."""
        if not self.is_array:
            return bytes(self.value)
        try:
            if self.value is None:
                raise ValueError("the cell is empty; it must hold the bytes of a file, or an array")
            return formats.to_npy(np.ascontiguousarray(self.value))
        except Exception as error:  # whatever else a table may hold
            raise UnreadableImage(self.path, one_line(error)) from error

    def read(self, intensities: Range | None = None) -> tuple[Image, str]:
        """(image, digest of its bytes); UnreadableImage as `io.read_image`."""
        data = self.bytes()
        return formats.decode(data, self.path, intensities), hashlib.sha256(data).hexdigest()

    def read_array(self) -> tuple[np.ndarray, str]:
        """(a measurement that is no image, digest of its bytes); UnreadableImage as for `read`."""
        data = self.bytes()
        return formats.decode_array(data, self.path), hashlib.sha256(data).hexdigest()

    def encoding_of_result(self, intensities: Range | None) -> Encoding:
        """How the image is stored that comes from a measurement."""
        return Source(self.path, self.path).encoding_of_result(intensities)

    def sha256(self) -> str | None:
        """Digest of the bytes; None where there are none."""
        try:
            return hashlib.sha256(self.bytes()).hexdigest()
        except UnreadableImage:
            return None

    def __str__(self) -> str:
        return self.item
