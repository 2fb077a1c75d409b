"""A task as a function of batches of rows, for engines that spread rows over machines.

    {"bytes": ..., "path": ..., more}  ->  {"bytes": results, "path": ..., more, "error": ..., "iterations": ..., ...}

Ray Data, Dask and Spark all hand a batch over as columns and take columns back; nothing of them is imported here.
What happens to a row is what happens to a file in a job of one machine (pipeline/job.py), so pixels are the same.
"""

import threading
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..io import Range, formats
from ..io.image import one_line
from ..networks import LPN, ExplicitLPN, shipped_or_loaded
from ..pipeline.batches import AUTO, Networks, batch_pixels_for, solvers_for
from ..pipeline.flow import Background, Solvers, Transfer
from ..pipeline.job import check_numbers, settings_of, solve_all
from ..pipeline.manifest import ItemResult, digest_of
from ..pipeline.run import Run, outcomes
from ..pipeline.tasks import Task
from .rows import Cell

IMAGE_COLUMNS = ("bytes", "content", "image")  # of Ray's and Spark's readers of files, and of arrays
NUMBERS = (
    "height",
    "width",
    "channels",
    "objective_first",
    "objective_last",
    "residual",
    "iterations",
    "seconds",
    "noise_estimate",
    "sigma",
    "value",
)
TEXTS = ("error", "model", "verdict", "source_sha256", "digest")
MOST_LOADED = 2  # callables whose networks one process keeps; a third one replaces the first

Outcome = tuple[ItemResult, bytes | None]  # its line, and the bytes of its file, if there is one


class Reconstructor:
    """Does a task to batches of rows; may be pickled, and loads its networks once in each process that calls it.

    A row that cannot be used gets an `error` and no image; the others of its batch are not concerned.

    Parameters
    ----------
    task : Denoise, Reconstruct or Score
    model : str, LPN or ExplicitLPN
        "auto", the name of a shipped model or the path of a saved one, which every worker must be able to read; or a
        network, which travels with the callable.
    column : str, optional
        The column of images: bytes of files, or arrays; None is the first of "bytes", "content" and "image" there is.
    names : str
        The column of the names of files, if there is one.
    intensities : (low, high), optional
        What becomes 0 and 1 of the stored numbers; None is what their type says.
    device : str, optional
        None is the GPU that the process sees, or else the CPU.
    threads : int, optional
        Of the CPU; None is what the process has: OMP_NUM_THREADS, which Ray, Dask and Spark set to a worker's cores.
    batch_pixels : int, optional
        Most pixels per network evaluation; None is what fits into memory.

    Raises
    ------
    ValueError
        A number out of range. When called: no column of images; task and model that do not fit together.

    Examples
    --------
    >>> from lpn_fast.pipeline import Denoise
    >>> restore = Reconstructor(Denoise(0.1), "fast-gray")
    >>> batch = restore({"image": np.full((2, 16, 16), 0.5, np.float32), "id": np.array([7, 8])})
    >>> batch["image"].shape, batch["id"].tolist(), batch["error"].tolist()
    ((2, 16, 16), [7, 8], ['', ''])
    """

    def __init__(
        self,
        task: Task,
        model: str | Path | LPN | ExplicitLPN = AUTO,
        *,
        column: str | None = None,
        names: str = "path",
        intensities: Range | None = None,
        device: str | None = None,
        threads: int | None = None,
        batch_pixels: int | None = None,
    ):
        check_numbers(intensities, threads=threads, batch_pixels=batch_pixels)
        self.task, self.model, self.column, self.names = task, model, column, names
        self.intensities = None if intensities is None else (float(intensities[0]), float(intensities[1]))
        self.device, self.threads, self.batch_pixels = device, threads, batch_pixels
        self._key = uuid.uuid4().hex  # copies that were pickled share what their process has loaded

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The batch with results in place of images, and columns of what became of each.

        Parameters
        ----------
        batch : mapping of str to sequence
            Columns of equal length: a dictionary of arrays, a pandas DataFrame.

        Returns
        -------
        dict of str to array
            The columns of the batch, and: `error`, "" for a row that was done; `height`, `width`, `channels`,
            `objective_first`, `objective_last`, `residual`, `iterations`, `seconds`, `noise_estimate`, `sigma` and
            `value`, NaN where unknown; `converged`; `model`, `verdict`, `source_sha256`, `digest`, "" where unknown;
            see `ItemResult`. Images are bytes where bytes came, else one array, or one per row where sizes differ;
            empty where there is an error. Nothing is None, of which engines make what they like.
        """
        columns = {name: batch[name] for name in batch.keys()}
        column = self._column_of(columns)
        values = list(columns[column])
        names = list(columns.get(self.names, [None] * len(values)))
        cells = [Cell(i, value, name) for i, (value, name) in enumerate(zip(values, names, strict=True))]
        done = self.outcomes(cells)
        out = {name: np.asarray(values) for name, values in columns.items() if name != column}
        if self.task.makes_images:
            out[column] = _images([data for _, data in done], any(not cell.is_array for cell in cells))
        else:
            out[column] = columns[column]
        lines = [line for line, _ in done]
        for name in NUMBERS:
            out[name] = np.array([_number(getattr(line, name)) for line in lines], np.float64)
        out["converged"] = np.array([bool(line.converged) for line in lines], bool)
        for name in TEXTS:
            out[name] = objects([getattr(line, name) or "" for line in lines])
        return out

    def outcomes(self, cells: Sequence) -> list[Outcome]:
        """What becomes of images that are read as `Source` and `Cell` are, in order."""
        loaded = _loaded(self)
        with loaded.lock:  # an engine may have several threads: a batch has all of torch's threads to itself
            return loaded.outcomes(list(cells))

    @property
    def settings(self) -> dict:
        """What decides the results besides the images, as a job has it in its manifest. Loads the networks."""
        return _loaded(self).settings

    def _column_of(self, columns: Mapping[str, Any]) -> str:
        wanted = IMAGE_COLUMNS if self.column is None else (self.column,)
        found = [name for name in wanted if name in columns]
        if not found:
            raise ValueError(f"the batch must have a column {' or '.join(wanted)}, got {', '.join(columns) or 'none'}")
        return found[0]


@dataclass
class _Collecting(Run):
    """A run whose results go back to the caller."""

    outcomes: dict[Any, Outcome] = field(default_factory=dict)

    def keep(self, batch, solution, computed, seconds: float) -> None:
        solution = self.transfer.download(solution, computed)
        for loaded, line, data in outcomes(self, batch, solution, seconds):
            self.outcomes[loaded.source] = line, data

    def refuse(self, source, reason: str) -> None:
        self.outcomes[source] = self.failure(source, reason), None


class _Loaded:
    """The networks of a callable, on the device, and what follows from them."""

    def __init__(self, told: Reconstructor):
        if told.threads is not None:
            torch.set_num_threads(told.threads)
        self.lock, self.task, self.intensities = threading.Lock(), told.task, told.intensities
        device = told.device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = told.model
        if isinstance(model, LPN | ExplicitLPN):
            model = model.to(device)
        elif model != AUTO:
            model = shipped_or_loaded(str(model), device)
        self.networks = Networks(model, device, getattr(told.task, "networks", None))
        for network in self.networks.all:
            told.task.conditions(network)
        self.settings = settings_of(told.task, self.networks, told.intensities)
        self.digest = digest_of(self.settings)
        self.batch_pixels = told.batch_pixels or batch_pixels_for(self.networks.widest)
        self.transfer = Transfer(next(self.networks.widest.parameters()))

    def outcomes(self, sources: list) -> list[Outcome]:
        count = solvers_for(self.networks.widest, len(sources), self.batch_pixels)
        try:
            with warnings.catch_warnings(), Background(ahead=count) as writer, Solvers(count) as team:
                warnings.simplefilter("ignore", RuntimeWarning)  # solvers warn of images; the columns tell
                run = self._run(writer, team)
                solve_all(run, sources, self.batch_pixels)
            return [run.outcomes[source] for source in sources]
        except Exception as error:  # what no image should cause: a row is to blame for it, or the device is gone
            self.transfer.check_alive()
            if len(sources) > 1:
                return [outcome for source in sources for outcome in self.outcomes([source])]
            return [(run.failure(sources[0], f"{type(error).__name__}: {one_line(error)}"), None)]

    def _run(self, writer: Background, team: Solvers) -> _Collecting:
        return _Collecting(
            out=Path(),
            task=self.task,
            networks=self.networks,
            manifest=None,  # whoever calls keeps one
            settings=self.settings,
            digest=self.digest,
            seed=None,
            intensities=self.intensities,
            bar=tqdm(disable=True),
            transfer=self.transfer,
            writer=writer,
            solvers=team,
        )


_LOADED: OrderedDict[str, _Loaded] = OrderedDict()
_LOADING = threading.Lock()


def _loaded(told: Reconstructor) -> _Loaded:
    """What this process has loaded for the callable, or its copies."""
    with _LOADING:
        if told._key not in _LOADED:
            _LOADED[told._key] = _Loaded(told)
        _LOADED.move_to_end(told._key)
        while len(_LOADED) > MOST_LOADED:
            _LOADED.popitem(last=False)
        return _LOADED[told._key]


def _images(results: list[bytes | None], are_files: bool) -> np.ndarray:
    """A column of results, empty where there is none."""
    if are_files:
        return objects([data or b"" for data in results])
    arrays = [None if data is None else formats.from_npy(data) for data in results]
    known = [array for array in arrays if array is not None]
    if len(known) == len(arrays) > 0 and len({(array.shape, array.dtype) for array in known}) == 1:
        return np.stack(known)
    like = known[0] if known else np.zeros((0, 0), np.float32)
    return objects([np.zeros((0,) * like.ndim, like.dtype) if array is None else array for array in arrays])


def objects(values: list) -> np.ndarray:
    """One object per row, whatever numpy would make of the list."""
    column = np.empty(len(values), object)
    for row, value in enumerate(values):
        column[row] = value
    return column


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
