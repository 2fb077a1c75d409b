"""Memory that was freed goes back to the system.

Pictures are decoded in one thread, solved in another, written in a third. glibc keeps a heap per thread, and what
one thread frees of another's heap stays there: without this the resident set creeps up over the first hundreds of
images (by some 50 MB for images of 256 x 256) before it levels off. One call walks all heaps, which takes a few
milliseconds, so it is made by the writing thread, after batches, and not more often than a small share of the time.
"""

import ctypes
import functools
import time

SHARE = 0.006  # of the time, at most: what was returned has to be asked for again


class Trim:
    """Returns what lies freed in the heaps, unless that was done just before.

    Examples
    --------
    >>> Trim().batch_done()
    """

    def __init__(self):
        self._not_before = 0.0

    def batch_done(self) -> None:
        trim, started = _malloc_trim(), time.monotonic()
        if trim is None or started < self._not_before:
            return
        trim(0)
        ended = time.monotonic()
        self._not_before = ended + (ended - started) / SHARE


@functools.cache
def _malloc_trim():
    """The function of glibc; None where the C library is another one."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
