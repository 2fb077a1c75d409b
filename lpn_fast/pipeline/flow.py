"""Reading, computing and writing at the same time, with bounded queues between them.

    read (threads, in order)  ->  batch and copy to the device (thread)  ->  solve (caller)  ->  write (thread)

Every stage is at most a few items ahead of the next, so memory depends on the size of images, never on their
number. An error of a stage surfaces in the caller, where the items before it have been dealt with.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

POLL_SECONDS = 0.1  # how soon a thread that waits for room in a queue notices that nobody wants it any more


def settle_thread_pool() -> None:
    """Make torch's thread pool whole in the calling thread, before other threads use torch; changes no setting.

    A process that was forked has lost the pool. The first operation of any new thread replaces it, and of two threads
    that are first at the same time one can find none: "Invalid thread pool!", which would be blamed on an image.

    Examples
    --------
    >>> settle_thread_pool()
    """
    torch.set_num_threads(torch.get_num_threads())


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int) -> Iterator[Result]:
    """function(item) for every item, in order, computed by threads at most `ahead` items early.

    Examples
    --------
    >>> list(in_order(abs, [-1, 2, -3], workers=2, ahead=2))
    [1, 2, 3]
    """
    waiting: deque[Future] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="lpn_fast read")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def ahead_of_time(items: Iterable[Item], ahead: int = 1) -> Iterator[Item]:
    """The items, taken from their iterator by a thread at most `ahead` early.

    Examples
    --------
    >>> list(ahead_of_time(iter("abc")))
    ['a', 'b', 'c']
    """
    ready: queue.Queue = queue.Queue(maxsize=ahead)
    abandoned = threading.Event()

    def put(entry) -> bool:
        while not abandoned.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(entry, timeout=POLL_SECONDS)
                return True
        return False

    def take() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                if not put((item, None)):
                    break
            else:
                put((None, StopIteration()))
        except BaseException as error:  # handed to the caller, whatever it is
            put((None, error))
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    thread = threading.Thread(target=take, name="lpn_fast batches", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        abandoned.set()
        thread.join()


class Background:
    """Runs one call at a time in a thread; its error is raised by the next `submit` or by the end of `with`.

    Whatever was submitted is finished before the `with` ends, even if that ends in an error: results that are
    computed are not thrown away.

    Examples
    --------
    >>> done = []
    >>> with Background() as background:
    ...     background.submit(done.append, 1)
    >>> done
    [1]
    """

    def __enter__(self) -> Background:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="lpn_fast write")
        self._running: Future | None = None
        return self

    def submit(self, function: Callable, *arguments) -> None:
        """Run function(*arguments) once the call before it has ended, for which this waits."""
        self._wait()
        self._running = self._pool.submit(function, *arguments)

    def _wait(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if error is None:
                self._wait()
        finally:
            self._pool.shutdown(wait=True)
