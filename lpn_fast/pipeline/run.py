"""What happens to the images of a job in its threads: read, solve, write.

What the reading and the writing thread do with a whole image is numpy's loaded: torch would start a team of threads for
each of them, which wait busily for the next operation on the cores that the solver needs.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .. import atomic, metrics
from ..io import Encoding, Range, UnreadableImage, encode
from ..io.formats import to_npy
from ..io.image import LARGEST_PLAUSIBLE, one_line
from ..io.sources import Source
from ..solvers.alarms import FAR
from ..solvers.noise import SMALLEST_SIDE
from .batches import Networks, kind_of, to_samples
from .flow import Background, Solvers, Transfer, in_order
from .manifest import ItemResult, Manifest
from .problems import Problem
from .tasks import Restoration, Task, gravest

DEGRADED_FOLDER = "degraded"  # inside the output folder
READERS = 2  # threads; decoding a photograph takes some 10 ms, so two keep up with any network here
READ_AHEAD, READ_AHEAD_BYTES = 8, 2**28  # images, and what they take decoded
LEAST_NOISE = 1e-4  # told to a network of an image that shows none
MISSED = "the noise level, the operator or the model does not fit, or the iterations were too few"


@dataclass(frozen=True)
class LoadedImage:
    """One image, ready to be solved. Tensors lie on the CPU."""

    source: Source
    source_sha256: str
    encoding: Encoding
    truth: Tensor | None  # (C, H, W)
    measured: Tensor  # (C, H', W')
    samples: Tensor  # (n, c, H', W'), `measured` as the network takes it
    kind: str  # which network it gets
    noise: float | None  # estimated, where the task needs it
    notes: tuple[str, ...]


Outcome = tuple[LoadedImage, ItemResult, bytes | None]  # an image, its line, the bytes of its file if it has one
Ready = tuple[Path | None, Path | None, ItemResult]  # temporary and final name of a result, if it is a file; its line


@dataclass
class Run:
    """What all images of a call share, and what has become of them so far."""

    out: Path
    task: Task
    networks: Networks
    manifest: Manifest
    settings: dict
    digest: str
    seed: int | None  # of the noise, where measurements are simulated
    intensities: Range | None
    bar: tqdm
    transfer: Transfer
    writer: Background
    solvers: Solvers
    made: list[ItemResult] = field(default_factory=list)

    def advance(self, images: float) -> None:
        """Move the progress bar; any thread."""
        with self.bar.get_lock():
            self.bar.update(images)

    def line(self, source: Source, status: str, source_sha256: str, **found) -> ItemResult:
        return ItemResult(source.item, status, str(source), source_sha256, self.settings, self.digest, **found)

    def failure(self, source: Source, reason: str) -> ItemResult:
        return self.line(source, "failed", source.sha256() or "", error=reason)

    def refuse(self, source: Source, reason: str) -> None:
        line = self.failure(source, reason)
        self.manifest.append(line)
        self.made.append(line)

    def keep(self, batch: list[LoadedImage], solution: Restoration, computed, seconds: float) -> None:
        """Result files and manifest lines of a batch: files under temporary names, lines, names, in this order.

        Lines are forced to disk once per batch. If the disk fills up, what is complete by then is kept.
        """
        ready: list[Ready] = []
        try:
            for loaded, line, data in outcomes(self, batch, self.transfer.download(solution, computed), seconds):
                if line.status == "done" and loaded.truth is not None and (reason := _keep_degraded(self, loaded)):
                    line, data = self.failure(loaded.source, reason), None
                if data is None:  # failed, or a number
                    ready.append((None, None, line))
                    continue
                path = loaded.source.result(self.out)
                path.parent.mkdir(parents=True, exist_ok=True)
                ready.append((atomic.stage(path, data), path, line))
        finally:
            full = self._record(ready)
            for temporary, path, line in ready:
                if temporary is not None:
                    os.replace(temporary, path)
                self.made.append(line)
        if full is not None:
            raise full

    def _record(self, ready: list[Ready]) -> BaseException | None:
        """Put the lines on disk; where there is no room for all, give up images until there is; the error, then."""
        error = None
        while ready:
            try:
                self.manifest.append(*(line for _, _, line in ready))
                break
            except BaseException as failed:
                error = failed
                if (temporary := ready.pop()[0]) is not None:
                    temporary.unlink(missing_ok=True)
        return error


def usable(run: Run, sources: list[Source]) -> Iterator[LoadedImage]:
    """The images, read ahead of time; those that cannot be used are recorded as failed and left out."""
    stream = in_order(lambda source: _read(run, source), sources, READERS, READ_AHEAD, _size, READ_AHEAD_BYTES)
    with contextlib.closing(stream) as read:
        yield from filter(None, read)


def _size(loaded: LoadedImage | None) -> int:
    return 0 if loaded is None else loaded.measured.nbytes * (1 if loaded.truth is None else 2)


def _read(run: Run, source: Source) -> LoadedImage | None:
    """An image; None for one that cannot be used, which is recorded."""
    problem = run.task.problem
    try:
        if problem.arrays is not None and run.seed is None:
            array, digest = source.read_array()
            measured, truth = problem.measured(array, run.intensities), None
            kind, notes = problem.kind, ()
            encoding = source.encoding_of_result(run.intensities)
        else:
            image, digest = source.read(run.intensities)
            truth = None if run.seed is None else image.pixels
            measured = image.pixels if truth is None else run.task.degrade(truth, _generator(run.seed, source))
            kind, encoding, notes = kind_of(image, problem.kind), image.encoding, image.notes
        kind = run.networks.suiting(kind)
        samples, noise = to_samples(measured, run.networks[kind].spec.channels), None
        if run.task.estimates_noise and (noise := run.task.noise_of([measured])[0]) is None:
            raise ValueError(
                f"its noise cannot be estimated from {' x '.join(map(str, measured.shape[1:]))} values; give the noise "
                f"level (images with sides of at least {SMALLEST_SIDE} pixels show it)"
            )
    except ValueError as error:
        run.refuse(source, error.reason if isinstance(error, UnreadableImage) else one_line(error))
        run.advance(1)
        return None
    return LoadedImage(source, digest, encoding, truth, measured, samples, kind, noise, notes)


def solve(run: Run, batch: list[LoadedImage], y: Tensor) -> None:  # y (sum n, c, H', W'), on the device
    """Solve a batch and have it written; if it fails as a whole, one by one to find who is to blame."""
    shown, started = 0.0, time.monotonic()  # shown: images of this batch, on the progress bar

    def show(images: float) -> None:
        nonlocal shown
        run.advance(images - shown)
        shown = images

    def advance(iteration: float) -> None:
        if run.solvers.stopped.is_set():
            raise CancelledError
        show(len(batch) * min(iteration / run.task.iterations, 1.0))

    noise = None
    if run.task.estimates_noise:  # a blank image shows none, and is left as it is
        levels = [max(loaded.noise, LEAST_NOISE) for loaded in batch for _ in loaded.samples]
        noise = torch.tensor(levels, dtype=y.dtype, device=y.device)  # (sum n,)
    try:
        solution = run.task.solve(y, run.networks.chosen(batch[0].kind), noise, on_iteration=advance)
        computed = run.transfer.computed()
    except (ValueError, RuntimeError) as error:
        run.transfer.check_alive()
        show(0)
        if len(batch) == 1:
            run.writer.submit(run.refuse, batch[0].source, one_line(error))
            show(1)
        else:
            for loaded, samples in zip(batch, y.split([len(loaded.samples) for loaded in batch]), strict=True):
                solve(run, [loaded], samples)
        return
    seconds = (time.monotonic() - started) / len(batch)
    run.writer.submit(run.keep, batch, solution, computed, seconds)
    show(len(batch))


def outcomes(run: Run, batch: list[LoadedImage], solution: Restoration, seconds: float) -> Iterator[Outcome]:
    """Those of a solved batch, in order; `solution` on the CPU."""
    start = 0
    given = not run.task.estimates_noise  # then the estimates are only compared with it
    levels = run.task.noise_of([loaded.measured for loaded in batch]) if given else [loaded.noise for loaded in batch]
    for loaded, noise in zip(batch, levels, strict=True):
        own = slice(start, start + len(loaded.samples))
        start = own.stop
        image = None if solution.x is None else solution.x[own].flatten(0, 1).float()  # (C, H, W)
        try:
            data = _file_of(image, loaded.encoding, bool(solution.broken[own].any()))
        except ValueError as error:
            yield loaded, run.failure(loaded.source, str(error)), None
            continue
        found = _found(run, loaded, solution, own, image) | {"noise_estimate": noise, "seconds": round(seconds, 4)}
        yield loaded, run.line(loaded.source, "done", loaded.source_sha256, **found), data


def _found(run: Run, loaded: LoadedImage, solution: Restoration, own: slice, image: Tensor | None) -> dict:
    """What a line says of an image that is done."""
    channels, height, width = (loaded.measured if image is None else image).shape
    problem, found = run.task.problem, {}
    if solution.objective is not None:
        objective = solution.objective[:, own].sum(dim=1)  # (iterations,)
        found |= {"objective_first": float(objective[0]), "objective_last": float(objective[-1])}
    if solution.value is not None:
        found |= {"value": float(solution.value[own].sum()), "verdict": gravest(solution.verdict[own])}
    notes = loaded.notes
    if solution.misfit is not None:
        misfit = found["misfit"] = float(solution.misfit[own].max())
        if misfit > FAR:
            notes += (f"misses its measurement by {misfit:.3g} times the noise: {MISSED}",)
    if solution.sigma is not None:
        found["sigma"] = float(solution.sigma[own][0])  # planes of one image have one level
    if loaded.truth is not None:
        truth, before = problem.framed(loaded.truth), problem.cropped(loaded.measured, image.shape[-2:])
        if before is not None:
            found["psnr_before"], found["ssim_before"] = _quality(before, truth)
        found["psnr"], found["ssim"] = _quality(image, truth)
    residual, iterations = float(solution.residual[own].max()), int(solution.iterations[own].max())
    found |= {"residual": residual, "iterations": iterations, "converged": bool(solution.converged[own].all())}
    found |= {"height": height, "width": width, "channels": channels, "notes": notes}
    return found | {"model": run.networks.names.get(loaded.kind)}


def degraded_path(source: Source, out: Path, problem: Problem) -> Path:
    """Of the simulated measurement of an image."""
    path = source.result(out / DEGRADED_FOLDER)
    return path if problem.arrays is None else path.with_name(f"{path.name}.npy")


def _keep_degraded(run: Run, loaded: LoadedImage) -> str | None:
    """Write the simulated measurement, or say why that cannot be."""
    path, are_images = degraded_path(loaded.source, run.out, run.task.problem), run.task.problem.arrays is None
    data = encode(loaded.measured, loaded.encoding) if are_images else to_npy(loaded.measured.numpy())
    if path.exists():  # from before a kill, or a picture of somebody
        same = path.is_file() and path.read_bytes() == data
        return None if same else f"{path} is another picture than its simulated measurement; it is not overwritten"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, data, alone=True)
    return None


def _file_of(image: Tensor | None, encoding: Encoding, is_broken: bool) -> bytes | None:
    """The bytes of a result's file, if it is an image; a ValueError says why it is no result."""
    if is_broken:
        raise ValueError("it became NaN or infinite on the way")
    if image is None:
        return None
    # The objective falls, but need not be bounded below: where the blur hides a pattern and the network amplifies it,
    # the iterates leave the range of images for good.
    largest = float(max(image.numpy().max(), -image.numpy().min()))
    if largest > LARGEST_PLAUSIBLE:
        raise ValueError(
            f"it diverged, to values of {largest:.1e}: the measurement may not be what this operator makes of an image "
            "(another kernel, a picture that is sharp), or have more noise than was told"
        )
    try:
        return encode(image, encoding)
    except Exception as error:  # a format with limits of its own, say on the size
        raise ValueError(f"its result cannot be stored as {encoding.suffix}: {one_line(error)}") from error


def _quality(image: Tensor, truth: Tensor) -> tuple[float, float | None]:  # of (C, H, W)
    """PSNR and SSIM after clipping to [0, 1]; SSIM is None for images smaller than its window."""
    pair = image[None].clamp(0, 1), truth[None].clamp(0, 1)
    side = min(truth.shape[-2:])
    return float(metrics.psnr(*pair)), float(metrics.ssim(*pair)) if side >= metrics.UNIFORM_SIDE else None


def _generator(seed: int, source: Source) -> torch.Generator:
    """Noise that depends on the seed and the name only."""
    digest = hashlib.sha256(os.fsencode(f"{seed}/{source.item}")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
