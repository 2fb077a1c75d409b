"""Memory that was freed goes back to the system.

Pictures are decoded in one thread, solved in another, written in a third. glibc keeps a heap per thread, and what
one thread frees of another's heap stays there: without this the resident set creeps up over the first hundreds of
images (by some 50 MB for images of 256 x 256) before it levels off. One call walks all heaps, which takes a few
milliseconds beside batches that take a hundred or more, so it is made once in BATCHES batches, by the writing thread.
"""

from __future__ import annotations

import ctypes
import functools

BATCHES = 4  # a call takes about 5 ms


class Trim:
    """Counts batches; every BATCHES of them it returns what lies freed in the heaps.

    Examples
    --------
    >>> Trim().batch_done()
    """

    def __init__(self):
        self._batches = 0

    def batch_done(self) -> None:
        self._batches += 1
        if self._batches % BATCHES == 0 and (trim := _malloc_trim()) is not None:
            trim(0)


@functools.cache
def _malloc_trim():
    """The function of glibc; None where the C library is another one."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
