"""The stages of a job as one streaming pipeline of Ray Data.

    batches of names -> read (tasks) -> solve and write (actors, one per core or GPU) -> lines to the driver

Ray moves batches from stage to stage as they finish, holds a stage back while the next one is behind, and spills to
disk what exceeds its object store, so memory does not depend on the number of images. An actor that is lost is
started again and its batches are done again. Reading waits for disks and stores and claims no cores. Results are
written where they were made, by a second thread while the next batch is solved: sent to a stage of their own, they
queue up there, and a kill costs all that were computed and not yet written (a third of 1,000 small images, once).

The pool of actors never shrinks below what the cluster has room for at the start: Ray Data ends actors that wait for
their first batch, and a job whose images were slow to read was then solved by one of two. It grows with the cluster.

A job of many batches is several such pipelines, one after the other, whose actors are started anew: seconds for what
takes a worker many minutes, and the driver's memory does not depend on the number of batches either.
"""

import contextlib
import itertools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

from .reconstructor import objects
from .stages import Batch, Solve, Write, read

OBJECT_STORE = 2**30  # bytes, where Ray is started here: some ten batches for each of a machine's cores
SOLVERS_PER_READER = 4  # workers that one task of reading keeps busy; each is a process of 300 MB
BATCHES, BATCHES_PER_WORKER = 2048, 128  # of one pipeline: Ray holds up to 60 kB for each in the driver
CALLS = 2  # batches that an actor has in hand at once, one being solved and one being written
SENT = 4  # and is sent: Ray Data starts no further actor before 1.75 batches are sent for each in hand


@dataclass(frozen=True)
class OnRay:
    """An engine for `jobs.reconstruct`.

    Parameters
    ----------
    address : str, optional
        Of a cluster, "auto" or ray://host:port; None joins the one that this process has joined or that RAY_ADDRESS
        names, and starts one on this machine otherwise.
    workers : int, optional
        Actors that solve, at most; None is one for each GPU of the cluster, or core. More than there is room for are
        started as the cluster grows.
    device : str, optional
        "cuda" reserves a GPU for each worker; None does if the cluster has some.
    threads : int
        Cores of a worker.

    Raises
    ------
    ValueError
        Ray is not installed, or a number is out of range.
    """

    address: str | None = None
    workers: int | None = None
    device: str | None = None
    threads: int = 1

    def __post_init__(self):
        for name in ("workers", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        _ray()

    def __call__(self, batches: Iterator[Batch], solve: Solve, write: Write) -> Iterator[Batch]:
        """Lines of batches as they are kept, in any order."""
        ray, batches = _ray(), iter(batches)
        with self._cluster(ray):
            import pyarrow

            resources = ray.cluster_resources()
            gpus = self.device is None and resources.get("GPU", 0) >= 1 or (self.device or "").startswith("cuda")
            most = int(resources["GPU"]) if gpus else max(1, int(resources.get("CPU", 1)) // self.threads)
            workers = self.workers or most
            at_once = max(BATCHES, BATCHES_PER_WORKER * workers)
            while tables := [
                ray.put(pyarrow.table({name: list(values) for name, values in batch.items()}))
                for batch in itertools.islice(batches, at_once)
            ]:
                yield from self._pipeline(ray, tables, solve, write, min(workers, len(tables)), most, gpus)

    def _pipeline(self, ray, tables: list, solve: Solve, write: Write, workers: int, most: int, gpus: bool):
        readers = ray.data.TaskPoolStrategy(size=-(-workers // SOLVERS_PER_READER))
        actors = ray.data.ActorPoolStrategy(
            min_size=min(workers, most),
            max_size=workers,
            max_tasks_in_flight_per_actor=SENT,
            max_concurrent_calls_per_actor=CALLS,
            enable_true_multi_threading=True,
        )
        lines = (
            ray.data.from_arrow_refs(tables)
            .map_batches(read, batch_size=None, num_cpus=0, compute=readers)
            .map_batches(
                _actor(solve, write), batch_size=None, num_cpus=self.threads, num_gpus=int(gpus), compute=actors
            )
        )
        for batch in lines.iter_batches(batch_size=None, prefetch_batches=1):
            yield {name: objects(list(batch[name])) for name in ("line", "part")}

    @contextlib.contextmanager
    def _cluster(self, ray) -> Iterator[None]:
        """Ray, stopped again if it was started here."""
        context = ray.data.DataContext.get_current()
        shown, context.enable_progress_bars = context.enable_progress_bars, False  # the job shows its own
        logger = logging.getLogger("ray.data")
        level = logger.level
        logger.setLevel(logging.ERROR)
        is_ours = not ray.is_initialized()
        if is_ours:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            where = self.address or os.environ.get("RAY_ADDRESS")
            own = {} if where else {"object_store_memory": OBJECT_STORE, "include_dashboard": False}
            if not where and self.workers is not None:
                own["num_cpus"] = self.workers * self.threads
            ray.init(where, logging_level=logging.ERROR, log_to_driver=False, **own)
        try:
            yield
        finally:
            context.enable_progress_bars = shown
            logger.setLevel(level)
            if is_ours:
                ray.shutdown()


def _actor(solve: Solve, write: Write) -> type:
    """A class for Ray's actors: it travels with them, so that one that is started again needs nothing else."""

    class SolveAndWrite:
        def __call__(self, batch):
            return write(solve(batch))  # one thread solves at a time, see Reconstructor

    return SolveAndWrite


def _ray():
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError(f'the engine ray needs Ray ({error}): pip install "lpn-fast[ray]"') from error
    return ray
