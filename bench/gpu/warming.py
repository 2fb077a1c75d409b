"""Compilation ahead of the parts that launch: Triton compiles a kernel in about a second, one after the other.

`warm` runs functions that launch kernels in processes side by side; what they compile is kept in Triton's and
inductor's folders, where the next process finds it. Nothing is measured, and a failure is the later part's to report.
"""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable

from .session import Nothing, Session


def warm(session: Session, work: list[tuple[Callable, tuple]]) -> None:
    """Call every function with its arguments, as many at once as there are cores; those that are late are left."""
    if session.device == "cpu":
        raise Nothing("there is no device to compile for")
    workers = max(1, min(len(work), (os.cpu_count() or 2) - 2, 14))
    pool = concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    names = {pool.submit(call, *arguments): f"{call.__name__} {arguments}" for call, arguments in work}
    try:
        for future in concurrent.futures.as_completed(names, timeout=session.seconds_left):
            failure = future.exception()
            said = "ok  " if failure is None else "----"
            session.show(f"{said} {names[future]}  {'' if failure is None else failure}".splitlines()[0][:160])
    except TimeoutError:
        session.show(f"---- {sum(not f.done() for f in names)} of {len(names)} were not ready in time")
    finally:
        for process in list(pool._processes.values()):  # shutdown would wait for them
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)
