"""A batch job: images in, results and a manifest out, restartable at any moment.

    find -> skip what is finished -> read -> (degrade, if the truth is given) -> batch -> solve -> write

Images are read as the batches need them, so the number of images does not matter to memory. What goes
wrong with one image becomes a line of the manifest and the job goes on. An image of a batch that fails is
found by solving the batch one by one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .. import metrics
from ..networks import LPN
from .batches import BATCH_PIXELS, bucketed, concatenated, from_samples, to_samples
from .images import LARGEST_PLAUSIBLE, Encoding, UnreadableImage, find_images, read_image, write_image
from .manifest import NAME as MANIFEST_NAME
from .manifest import ItemResult, Manifest, digest_of, open_manifest
from .tasks import Solution, Task

DEGRADED_FOLDER = "degraded"  # inside the output folder
BAR = "{l_bar}{bar}| {n:.1f}/{total} [{elapsed}, {remaining} left, {rate_fmt}]"


@dataclass(frozen=True)
class Summary:
    """What became of the images of a job, in the order of finishing.

    Attributes
    ----------
    out : Path
        The output folder.
    done : tuple of ItemResult
        Finished by this call.
    skipped : tuple of ItemResult
        Finished by an earlier one.
    failed : tuple of ItemResult
        Not reconstructed; ``error`` says why.
    """

    out: Path
    done: tuple[ItemResult, ...]
    skipped: tuple[ItemResult, ...]
    failed: tuple[ItemResult, ...]


@dataclass(frozen=True)
class Work:
    """One image on its way. Tensors lie on the CPU."""

    path: Path
    source_sha256: str
    encoding: Encoding
    truth: Tensor | None  # (C, H, W)
    measured: Tensor  # (C, H', W')
    samples: Tensor  # (n, c, H', W'), `measured` as the network takes it
    notes: tuple[str, ...]


@dataclass
class Run:
    """What all images of a call share, and what has become of them so far."""

    out: Path
    task: Task
    model: LPN
    manifest: Manifest
    settings: dict
    digest: str
    simulate: bool
    seed: int
    bar: tqdm
    done: list[ItemResult] = field(default_factory=list)
    failed: list[ItemResult] = field(default_factory=list)


def reconstruct(
    images: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    task: Task,
    model: LPN,
    simulate: bool = False,
    seed: int = 0,
    batch_pixels: int = BATCH_PIXELS,
    progress: bool = False,
) -> Summary:
    """Reconstruct image files into a folder.

    A result has the file name, format and bit depth of its image. ``manifest.jsonl`` in the folder gets one
    line per image. Called again with the same arguments it does what is left; images that failed are tried
    again. Finished results are never overwritten.

    Parameters
    ----------
    images : path or iterable of paths
        Files, folders and glob patterns, see `find_images`. Measurements, or truths with ``simulate``.
    out : path
        Folder for the results, made if need be.
    task : Deblur or Denoise
    model : LPN
        For images in [0, 1]. One with a single channel takes colour images plane by plane.
    simulate : bool
        Degrade the images first, which are then the truth: the degraded pictures go to ``out/degraded``,
        rounded to the bit depth for looking at; the solver gets them unrounded. PSNR and SSIM are recorded.
    seed : int
        Of the simulated noise; each image has its own, whatever its batch.
    batch_pixels : int
        Most pixels per network evaluation; larger suits GPUs, smaller saves memory.
    progress : bool
        Show a progress bar on standard error, if that is a terminal.

    Returns
    -------
    Summary

    Raises
    ------
    FileNotFoundError
        A file or folder that is not there, or a pattern that matches nothing.
    ValueError
        No images; two images of one name; ``out`` is no folder, holds the images themselves, results of
        other settings or files this job did not write, or another job is writing there; task, model and
        sigma do not fit together. Nothing has been written then, except the folder.

    Examples
    --------
    >>> import tempfile
    >>> import lpn_fast as lf
    >>> from lpn_fast.pipeline import Denoise
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = write_image(folder / "a.png", torch.rand(1, 16, 16), Encoding(".png", "L"))
    >>> summary = reconstruct(folder, folder / "out", task=Denoise(0.1), model=lf.ConvLPN(1, hidden=8).eval())
    >>> len(summary.done), len(summary.failed)
    (1, 0)
    """
    out, paths = Path(out), find_images(images)
    _check_names(paths, out)
    if batch_pixels < 1:
        raise ValueError(f"batch_pixels must be at least 1, got {batch_pixels}")
    task.conditions(model)
    settings = task.settings(model) | ({"simulate": True, "seed": seed} if simulate else {"simulate": False})
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder, {out} is a file")
    out.mkdir(parents=True, exist_ok=True)

    with open_manifest(out) as manifest:
        digest = digest_of(settings)
        skipped = _finished(paths, out, manifest, digest)
        left = [path for path in paths if path.name not in skipped]
        hidden = None if progress else True  # None: hidden unless standard error is a terminal
        with tqdm(total=len(left), desc=task.name, unit="img", bar_format=BAR, disable=hidden) as bar:
            run = Run(out, task, model, manifest, settings, digest, simulate, seed, bar)
            for batch in bucketed(_read(run, left), lambda work: work.samples, batch_pixels):
                _solve(run, batch)
        return Summary(out, tuple(run.done), tuple(skipped.values()), tuple(run.failed))


def _check_names(paths: list[Path], out: Path) -> None:
    """Results are told apart by file name, so these must differ."""
    seen: dict[str, Path] = {}
    for path in paths:
        if path.name in seen:
            raise ValueError(
                f"images must have different file names, got {seen[path.name]} and {path}; "
                "reconstruct them into different folders"
            )
        seen[path.name] = path
        if path.parent.resolve() == out.resolve():
            raise ValueError(f"out must not be the folder of the images, {path} would be overwritten")


def _finished(paths: list[Path], out: Path, manifest: Manifest, digest: str) -> dict[str, ItemResult]:
    """Results that are there and are what this job would make; anything else in their place is an error."""
    finished = {}
    for path in paths:
        if not (out / path.name).exists():
            continue
        result = manifest.results.get(path.name)
        if result is None or result.status != "done":
            why = f"is not recorded in its {MANIFEST_NAME}"
        elif result.digest != digest:
            why = "is a result of other settings"
        elif result.source_sha256 != _sha256_or_none(path):
            why = f"is a result of another {path}"
        else:
            finished[path.name] = result
            continue
        raise ValueError(
            f"out must not hold {out / path.name}, which {why}; nothing is overwritten, choose another folder"
        )
    return finished


def _read(run: Run, paths: list[Path]) -> Iterator[Work]:
    """The images as work; those that cannot be used are recorded as failed and left out."""
    for path in paths:
        try:
            image = read_image(path)
            truth = image.pixels if run.simulate else None
            measured = run.task.degrade(truth, _generator(run.seed, path)) if run.simulate else image.pixels
            samples = to_samples(measured, run.model.spec.channels)
        except UnreadableImage as error:
            _record_failure(run, path, error.reason)
            run.bar.update(1)
        except ValueError as error:
            _record_failure(run, path, str(error))
            run.bar.update(1)
        else:
            digest = _sha256_or_none(path)
            yield Work(path, digest, image.encoding, truth, measured, samples, image.notes)


def _solve(run: Run, batch: list[Work]) -> None:
    """Solve a batch and write its results; if it fails as a whole, one by one to find who is to blame."""
    own = next(run.model.parameters())
    y = concatenated([work.samples for work in batch]).to(own)  # (sum n, c, H', W')
    before, started = run.bar.n, time.monotonic()

    def advance(iteration: int) -> None:
        run.bar.update(before + len(batch) * min(iteration / run.task.iterations, 1.0) - run.bar.n)

    try:
        solution = run.task.solve(y, run.model, on_iteration=advance)
    except (ValueError, RuntimeError) as error:
        run.bar.update(before - run.bar.n)
        if len(batch) == 1:
            _record_failure(run, batch[0].path, " ".join(str(error).split()))
            run.bar.update(1)
        else:
            for work in batch:
                _solve(run, [work])
        return
    seconds = (time.monotonic() - started) / len(batch)

    start = 0
    for work in batch:
        own_samples = slice(start, start + len(work.samples))
        start = own_samples.stop
        reason = _divergence(solution, own_samples)
        if reason is None:
            _write(run, work, solution, own_samples, seconds)
        else:
            _record_failure(run, work.path, reason)
    run.bar.update(before + len(batch) - run.bar.n)


def _divergence(solution: Solution, own: slice) -> str | None:
    """Why the result is no image, or None.

    The theorem promises that the objective falls, not that it is bounded below: where the blur hides a
    pattern and the network amplifies it, the iterates leave the range of images for good.
    """
    if bool(solution.broken[own].any()):
        return "it became NaN or infinite on the way"
    largest = float(solution.x[own].abs().max())
    if largest > LARGEST_PLAUSIBLE:
        return f"it diverged, to values of {largest:.1e}; take fewer iterations or another sigma or model"
    return None


def _write(run: Run, work: Work, solution: Solution, own: slice, seconds: float) -> None:
    """Result file and manifest line of one image."""
    image = from_samples(solution.x[own]).float().cpu()  # (C, H, W)
    objective = solution.objective[:, own].sum(dim=1)  # (iterations,)
    quality = {}
    if work.truth is not None:
        before = run.task.cropped(work.measured, tuple(work.truth.shape[-2:]))
        quality["psnr_before"], quality["ssim_before"] = _quality(before, work.truth)
        quality["psnr"], quality["ssim"] = _quality(image, work.truth)
        degraded = run.out / DEGRADED_FOLDER
        degraded.mkdir(exist_ok=True)
        write_image(degraded / work.path.name, work.measured, work.encoding)
    result = ItemResult(
        item=work.path.name,
        status="done",
        source=str(work.path),
        source_sha256=work.source_sha256,
        settings=run.settings,
        digest=run.digest,
        height=image.shape[1],
        width=image.shape[2],
        channels=image.shape[0],
        objective_first=float(objective[0]),
        objective_last=float(objective[-1]),
        residual=float(solution.residual[own].max()),
        iterations=int(solution.iterations[own].max()),
        converged=bool(solution.converged[own].all()),
        seconds=round(seconds, 4),
        notes=work.notes,
        **quality,
    )
    path = run.out / work.path.name
    write_image(path, image, work.encoding, before_rename=lambda: run.manifest.append(result))
    run.done.append(result)


def _record_failure(run: Run, path: Path, reason: str) -> None:
    digest = _sha256_or_none(path) or ""
    result = ItemResult(path.name, "failed", str(path), digest, run.settings, run.digest, error=reason)
    run.manifest.append(result)
    run.failed.append(result)


def _quality(
    image: Tensor,  # (C, H, W)
    truth: Tensor,  # (C, H, W)
) -> tuple[float, float | None]:
    """PSNR and SSIM after clipping to [0, 1]; SSIM is None for images smaller than its window."""
    pair = image[None].clamp(0, 1), truth[None].clamp(0, 1)
    side = min(truth.shape[-2:])
    return float(metrics.psnr(*pair)), float(metrics.ssim(*pair)) if side >= metrics.UNIFORM_SIDE else None


def _generator(seed: int, path: Path) -> torch.Generator:
    """Noise that depends on the seed and the file name only."""
    digest = hashlib.sha256(f"{seed}/{path.name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _sha256_or_none(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
