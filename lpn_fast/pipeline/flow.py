"""Reading, computing and writing at the same time, with bounded queues between them.

    read (threads, in order) -> batch and copy to the device (thread) -> solve (threads or caller) -> write (thread)

Memory depends on the size of images, never on their number. An error of a stage surfaces in the caller, where the items
before it have been dealt with.
"""

import contextlib
import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .tasks import Restoration

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    ahead: int,
    weight: Callable[[Result], float] = lambda result: 0.0,
    most: float = math.inf,
) -> Iterator[Result]:
    """function(item) for every item, in order, computed by threads at most `ahead` items early.

    Results that wait and those to come weigh at most `most` together, where those to come are taken to weigh what the
    last one did. One item at a time is begun whatever it weighs.
    """
    waiting: deque[Future] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="lpn_fast read")
    rest, done, last = iter(items), object(), most

    def has_room() -> bool:
        if not waiting or most == math.inf:
            return len(waiting) <= ahead
        ready = [future.result() for future in waiting if future.done() and future.exception() is None]
        to_come = len(waiting) - len(ready) + 1
        return len(waiting) <= ahead and to_come <= workers and sum(map(weight, ready)) + to_come * last <= most

    try:
        while True:
            while has_room() and (item := next(rest, done)) is not done:
                waiting.append(pool.submit(function, item))
            if not waiting:
                break
            result = waiting.popleft().result()
            last = weight(result)
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def ahead_of_time(items: Generator[Item, None, None], ahead: int = 1) -> Iterator[Item]:
    """The items, taken from their iterator by a thread at most `ahead` early."""
    end = object()
    taken = in_order(lambda _: next(items, end), itertools.repeat(None), workers=1, ahead=ahead)
    with contextlib.closing(items), contextlib.closing(taken):  # waits for the item that is being taken
        yield from iter(lambda: next(taken), end)


@contextlib.contextmanager
def ticking(bar: tqdm, seconds: float = 1.0) -> Iterator[None]:
    """Keep the clock of a progress bar going while nothing else moves it: one large image may take minutes."""
    over = threading.Event()

    def tick() -> None:
        while not over.wait(seconds):
            bar.refresh()

    with ThreadPoolExecutor(1, thread_name_prefix="lpn_fast clock") as pool:
        if not bar.disable:
            pool.submit(tick)
        try:
            yield
        finally:
            over.set()


class Background(contextlib.AbstractContextManager):
    """Runs calls one after another in a thread; an error is raised by a later `submit` or by the end of `with`.

    At most `ahead` calls are unfinished, else `submit` waits; any thread may submit. Whatever was submitted
    is finished before the `with` ends, even if that ends in an error: results that are computed are not thrown away.
    """

    def __init__(self, ahead: int = 1, threads: int = 1, begin: Callable[[], None] | None = None):
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="lpn_fast work", initializer=begin)
        self._ahead, self._lock = ahead, threading.Lock()
        self._running: set[Future] = set()

    def submit(self, function: Callable, *arguments) -> None:
        """Run function(*arguments) after the calls before it, or beside them where there are several threads."""
        with self._lock:
            self._settle(self._ahead - 1)
            self._running.add(self._pool.submit(function, *arguments))

    def _settle(self, most: int = 0) -> None:
        """Wait until no more than `most` calls are unfinished; the error of one that has ended is raised."""
        timeout: float | None = 0.0
        while timeout == 0 or len(self._running) > most:
            ended, self._running = wait(self._running, timeout, FIRST_COMPLETED)
            timeout = None
            for call in ended:
                call.result()

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if error is None:
                self._settle()
        finally:
            self._close()

    def _close(self) -> None:
        self._pool.shutdown()


class Solvers(Background):
    """Runs calls side by side in `count` threads, each of which has one of torch's threads: itself.

    A core that solves a batch of its own waits for no other core, neither at the end of every loop of a network nor
    while reading and writing have one of them. With count 1 the caller runs every call, with all of torch's threads.
    If the `with` ends in an error, what has not begun never does; `stopped` tells what still runs to end soon.
    """

    def __init__(self, count: int):
        turn, all_here = threading.Lock(), threading.Barrier(count)

        def begin() -> None:
            with turn:
                torch.set_num_threads(1)
            all_here.wait()

        super().__init__(count + 1, count, begin)  # one call more than threads is at hand
        self.count, self.stopped, self._threads = count, threading.Event(), torch.get_num_threads()
        # A process that was forked has lost torch's pool. Of two threads that replace it at the same time, by their
        # first operation, one can find none: "Invalid thread pool!", which would be blamed on an image.
        torch.set_num_threads(self._threads)

    def __enter__(self) -> "Solvers":
        if self.count > 1:
            torch.set_num_threads(1)  # for this thread and those started later
            wait([self._pool.submit(int) for _ in range(self.count)])  # settled before any of them works
        return self

    def submit(self, function: Callable, *arguments) -> None:
        if self.count == 1:
            function(*arguments)
        else:
            super().submit(function, *arguments)

    def alone(self, function: Callable, *arguments) -> None:
        """Run function(*arguments) in the caller with all of torch's threads, once the calls before it have ended."""
        self._settle()
        own = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            function(*arguments)
        finally:
            torch.set_num_threads(own)

    def _close(self) -> None:
        self.stopped.set()
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads)


class Transfer:
    """Copies to the device and back, for models whose parameters look like `own`, beside the computation.

    On a GPU a batch is gathered in pinned memory and copied on a stream of its own while the one before it is being
    solved; results come back the same way. On a CPU nothing is copied.
    """

    def __init__(self, own: Tensor):
        self.device, self.dtype = own.device, own.dtype
        self._is_cuda = own.device.type == "cuda"
        self._up, self._down = (torch.cuda.Stream(own.device) if self._is_cuda else None for _ in range(2))

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
            on_cpu = {name: t.to("cpu", non_blocking=True) for name, t in vars(solution).items() if t is not None}
        self._down.synchronize()
        return replace(solution, **on_cpu)

    def check_alive(self) -> None:
        """Raise a RuntimeError if the device does not answer: no further image can be done then."""
        try:
            torch.zeros(1, device=self.device).item()
        except RuntimeError as error:
            raise RuntimeError(f"{self.device} does not answer any more; finished images are kept: {error}") from error
