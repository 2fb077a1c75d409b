"""A batch job: images in, results and a manifest out, restartable at any moment.

    find -> skip what is finished -> read -> (degrade, if the truth is given) -> batch -> solve -> write

Images are read as the batches need them, so the number of images does not matter to memory. What goes
wrong with one image becomes a line of the manifest and the job goes on. An image of a batch that fails is
found by solving the batch one by one. What is wrong with the job, a full disk or a lost GPU, ends it with an
error; what was finished is kept.
"""

import contextlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..io import Range
from ..networks import LPN
from .batches import batch_pixels_for, bucketed, solvers_for
from .flow import Background, Solvers, ahead_of_time, settle_thread_pool
from .gather import gather
from .manifest import NAME as MANIFEST_NAME
from .manifest import ItemResult, Manifest, digest_of, open_manifest
from .processes import Share
from .run import Failure, Run, record_failures, solve, usable
from .sources import Source, find_sources
from .tasks import Task
from .transfer import Transfer

BAR = "{l_bar}{bar}| {n:.1f}/{total} [{elapsed}, {remaining} left, {rate_fmt}]"


@dataclass(frozen=True)
class Summary:
    """What became of the images of a job, in the order of finishing; of those of this process if there are several.

    Attributes
    ----------
    out : Path
        The output folder.
    done : tuple of ItemResult
        Finished by this call.
    skipped : tuple of ItemResult
        Finished by an earlier one.
    failed : tuple of ItemResult
        Not reconstructed; `error` says why.
    everything : tuple of ItemResult or None
        All images of the job, of all processes, in the order they were named; None while some are missing.
    incomplete : tuple of str
        Containers some of whose images failed; the results of the others lie in the folder `NAME.parts`.
    """

    out: Path
    done: tuple[ItemResult, ...]
    skipped: tuple[ItemResult, ...]
    failed: tuple[ItemResult, ...]
    everything: tuple[ItemResult, ...] | None = None
    incomplete: tuple[str, ...] = ()


def reconstruct(
    images: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    task: Task,
    model: LPN,
    simulate: bool = False,
    seed: int = 0,
    batch_pixels: int | None = None,
    solvers: int | None = None,
    intensities: Range | None = None,
    share: Share | None = None,
    progress: bool = False,
) -> Summary:
    """Reconstruct image files into a folder.

    A result has the file name, format and bit depth of its image; the results of a container file (a .npy stack,
    .npz, .zip, .h5) make one such file, once they are all there. `manifest.jsonl` in the folder gets one
    line per image. Called again with the same arguments it does what is left; images that failed are tried
    again. Finished results are never overwritten.

    Parameters
    ----------
    images : path or iterable of paths
        Files, folders, glob patterns and `@` lists, see `find_images`. Measurements, or truths with
        `simulate`.
    out : path
        Folder for the results, made if need be.
    task : Deblur or Denoise
    model : LPN
        For images in [0, 1]. One with a single channel takes colour images plane by plane.
    simulate : bool
        Degrade the images first, which are then the truth: the degraded pictures go to `out/degraded`,
        rounded to the bit depth for looking at; the solver gets them unrounded. PSNR and SSIM are recorded.
    seed : int
        Of the simulated noise; each image has its own, whatever its batch.
    batch_pixels : int, optional
        Most pixels per network evaluation; None is what fits into memory.
    solvers : int, optional
        Batches that are solved at once on a CPU, each by one thread, if 2 or more; 1 is one at a time by all threads
        of torch's. None is one per thread, or 1 for a few images. Images larger than `batch_pixels` are solved
        one at a time by all threads.
    intensities : (low, high), optional
        What becomes 0 and 1 of the numbers in the files; None is what their type says, see `io.read_image`.
    share : Share, optional
        Which of several processes this is, see `Share`; None is the only one.
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
        No images; two images of one name; `out` is no folder, holds the images themselves, results of
        other settings or files this job did not write, or another job is writing there; task, model and
        sigma do not fit together, or the model is not one of images. Nothing has been written then, except the folder.
    OSError
        The folder cannot be written to, or is full.

    Examples
    --------
    >>> import tempfile, torch
    >>> import lpn_fast as lf
    >>> from lpn_fast.pipeline import Denoise, Encoding, write_image
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = write_image(folder / "a.png", torch.rand(1, 16, 16), Encoding(".png", "uint8"))
    >>> summary = reconstruct(folder, folder / "out", task=Denoise(0.1), model=lf.ConvLPN(1, hidden=8).eval())
    >>> len(summary.done), len(summary.failed)
    (1, 0)
    """
    out, share = Path(out), share or Share()
    if len(model.spec.axes) != 2:
        kind = "vectors" if model.spec.is_dense else "volumes; call it, or a solver, on tensors"
        raise ValueError(f"model must be a network of images, got one of {kind}")
    everything, broken = find_sources(images)
    _check_names([*(source.path for source in everything), *(error.path for error in broken)], out)
    if batch_pixels is None:
        batch_pixels = batch_pixels_for(model)
    if batch_pixels < 1:
        raise ValueError(f"batch_pixels must be at least 1, got {batch_pixels}")
    if solvers is not None and solvers < 1:
        raise ValueError(f"solvers must be at least 1, got {solvers}")
    if solvers is not None and solvers > 1 and next(model.parameters()).is_cuda:
        raise ValueError(f"solvers must be 1 for a model on a GPU, got {solvers}")
    if intensities is not None and not -float("inf") < intensities[0] < intensities[1] < float("inf"):
        raise ValueError(f"intensities must be (low, high), finite and low < high, got {tuple(intensities)}")
    task.conditions(model)
    settings = task.settings(model) | ({"simulate": True, "seed": seed} if simulate else {"simulate": False})
    settings |= {"intensities": list(intensities)} if intensities is not None else {}
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder, {out} is a file")
    out.mkdir(parents=True, exist_ok=True)
    settle_thread_pool()

    own = share.of(everything)
    with open_manifest(out, share) as manifest:
        digest = digest_of(settings)
        skipped = _finished(own, out, manifest, digest)
        left = [source for source in own if source.item not in skipped]
        hidden = None if progress and share.rank == 0 else True  # None: hidden unless standard error is a terminal
        transfer, count = Transfer(next(model.parameters())), solvers or solvers_for(model, len(left), batch_pixels)
        with (
            tqdm(total=len(left), desc=task.name, unit="img", bar_format=BAR, disable=hidden) as bar,
            warnings.catch_warnings(),  # here, since it is not for threads
            Background(ahead=count) as writer,
            Solvers(count) as team,
        ):
            warnings.simplefilter("ignore", RuntimeWarning)  # samples that became NaN are in the manifest
            run = Run(
                out,
                task,
                model,
                manifest,
                settings,
                digest,
                simulate,
                seed,
                intensities,
                bar,
                transfer,
                writer,
                team,
            )
            for error in broken if share.rank == 0 else ():
                record_failures(run, Failure(Source(error.path), error.reason))
            batches = bucketed(usable(run, left), lambda loaded: loaded.samples, batch_pixels)
            uploaded = ((batch, *transfer.upload([loaded.samples for loaded in batch])) for batch in batches)
            with contextlib.closing(ahead_of_time(uploaded)) as stream:
                for batch, y, event in stream:
                    start = team.submit if y.numel() <= batch_pixels else team.alone
                    start(solve, run, batch, transfer.arrived(y, event))
    finished, incomplete = gather(everything, broken, out)
    return Summary(out, tuple(run.done), tuple(skipped.values()), tuple(run.failed), finished, incomplete)


def _check_names(paths: list[Path], out: Path) -> None:
    """Results are told apart by file name, so these must differ."""
    seen: dict[str, Path] = {}
    for path in dict.fromkeys(paths):
        if path.name in seen:
            raise ValueError(
                f"images must have different file names, got {seen[path.name]} and {path}; "
                "reconstruct them into different folders"
            )
        seen[path.name] = path
    for parent in {path.parent for path in paths}:
        if parent.resolve() == out.resolve():
            raise ValueError(f"out must not be the folder of the images, {out}: they would be overwritten")


def _finished(sources: list[Source], out: Path, manifest: Manifest, digest: str) -> dict[str, ItemResult]:
    """Results that are there and are what this job would make; anything else in their place is an error."""
    finished = {}
    for source in sources:
        if not source.is_there(out):
            continue
        result = manifest.results.get(source.item)
        if result is None or result.status != "done":
            why = f"is not recorded in its {MANIFEST_NAME}"
        elif result.digest != digest:
            why = "is a result of other settings"
        elif result.source_sha256 != source.sha256():
            why = f"is a result of another {source}"
        else:
            finished[source.item] = result
            continue
        raise ValueError(
            f"out must not hold {source.result(out)}, which {why}; nothing is overwritten, choose another folder"
        )
    return finished
