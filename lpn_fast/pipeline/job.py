"""A batch job: images in, results and a manifest out, restartable at any moment.

    find -> skip what is finished -> read -> (degrade, if the truth is given) -> batch -> solve -> write

Images are read as the batches need them, so their number does not matter to memory. What goes wrong with one image
becomes a line of the manifest and the job goes on; in a batch it is found by solving one by one. What is wrong with the
job, a full disk or a lost GPU, ends it with an error; what was finished is kept.
"""

import contextlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from tqdm.auto import tqdm

from ..io import Range
from ..io.containers import Content, Images
from ..io.finding import Patterns, identity
from ..io.sources import Source, find_sources, put_together
from ..networks import LPN, ExplicitLPN
from .batches import Networks, batch_pixels_for, bucketed, solvers_for
from .flow import Background, Solvers, Transfer, ahead_of_time, ticking
from .manifest import ALONE, MANIFEST, ItemResult, Results, Share, digest_of, lock_of, open_manifest, read_results
from .run import DEGRADED_FOLDER, Run, solve, usable
from .tasks import Task

BAR = "{l_bar}{bar}| {n:.1f}/{total} [{elapsed}, {remaining} left, {rate_fmt}]"


@dataclass(frozen=True)
class Summary:
    """What became of the images of a job, in the order of finishing; of those of this process if there are several.

    out                     the output folder
    done, skipped, failed   finished by this call; finished by an earlier one; not reconstructed, `error` says why
    everything              all images of the job, of all processes, as they were named; None while some are missing
    incomplete              containers some of whose images failed; results of the others are in `NAME.parts`
    passed_over             what was in folders besides, in words
    sources                 where the images of the job are read from
    """

    out: Path
    done: tuple[ItemResult, ...]
    skipped: tuple[ItemResult, ...]
    failed: tuple[ItemResult, ...]
    everything: tuple[ItemResult, ...] | None = None
    incomplete: tuple[str, ...] = ()
    passed_over: str = ""
    sources: tuple[Source, ...] = ()


def reconstruct(
    images: Patterns,
    out: str | Path,
    *,
    task: Task,
    model: LPN | ExplicitLPN | str,
    recursive: bool = False,
    simulate: bool = False,
    seed: int = 0,
    batch_pixels: int | None = None,
    solvers: int | None = None,
    intensities: Range | None = None,
    share: Share = ALONE,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Summary:
    """Reconstruct image files into a folder.

    A result has the file name, format and bit depth of its image; the results of a container file (a .npy stack,
    .npz, .zip, .h5) make one such file, once they are all there. `manifest.jsonl` in the folder gets one line per
    image. Called again it does what is left and what failed. Finished results are never overwritten.

    Parameters
    ----------
    images : path or iterable of paths
        Files, folders, glob patterns and `@` lists, see `find_images`.
    out : path
        Folder for the results, made if need be.
    task : Denoise, Reconstruct or Score
    model : LPN, ExplicitLPN or "auto"
        For images in [0, 1]. One with a single channel takes colour images plane by plane. "auto" gives each image
        the shipped one for colour, gray, or CT.
    recursive : bool
        Look into the subfolders of folders; results are in subfolders of the same names.
    simulate : bool
        The images are truths: degrade them first, and record PSNR and SSIM. The degraded pictures go to `out/degraded`,
        rounded to the bit depth for looking at; the solver gets them unrounded.
    seed : int
        Of the simulated noise; each image has its own, whatever its batch.
    batch_pixels : int, optional
        Most pixels per network evaluation; None is what fits into memory.
    solvers : int, optional
        Batches that are solved at once on a CPU, each by one thread; 1 is one at a time by all threads of torch's, as
        images larger than `batch_pixels` always are. None is one per thread, or 1 for a few images.
    intensities : (low, high), optional
        What becomes 0 and 1 of the numbers in the files; None is what their type says, see `io.read_image`.
    share : Share
        Which of several processes this is, see `Share`; the only one by default.
    device : str or torch.device
        Of networks that are chosen by the image.
    progress : bool
        Show a progress bar on standard error, if that is a terminal.

    Raises
    ------
    FileNotFoundError
        A file or folder that is not there, or a pattern that matches nothing.
    ValueError
        No images; `out` is no folder, holds the images themselves, results of other settings or files this job did not
        write, or another job is writing there; task, model and sigma do not fit together, or the model is not one of
        images. Nothing has been written then, except the folder.
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
    out, seed = Path(out), seed if simulate else None
    check_numbers(intensities, batch_pixels=batch_pixels, solvers=solvers)
    networks = Networks(model, device, task.networks)
    everything, unlisted, found = find_sources(images, recursive, out, content_of(task, simulate, intensities))
    broken = {Source(error.path, found.places[error.path]): error.reason for error in unlisted}
    check_places([*everything, *broken], out, simulate)
    if simulate and not task.makes_images:
        raise ValueError(f"simulate is for tasks that make images, got {task.name}")
    batch_pixels, own_type = batch_pixels or batch_pixels_for(networks.widest), next(networks.widest.parameters())
    if (solvers or 1) > 1 and own_type.is_cuda:
        raise ValueError(f"solvers must be 1 for a model on a GPU, got {solvers}")
    for network in networks.all:
        task.conditions(network)
    settings = settings_of(task, networks, intensities, seed)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder, {out} is a file")
    out.mkdir(parents=True, exist_ok=True)
    own = everything[share.rank :: share.world]
    with open_manifest(out, share) as manifest:
        skipped = finished(own, manifest.results, settings, task.makes_images, InFolder(out))
        left = [source for source in own if source.item not in skipped]
        hidden = None if progress and share.rank == 0 else True  # None: hidden unless standard error is a terminal
        transfer, count = Transfer(own_type), solvers or solvers_for(networks.widest, len(left), batch_pixels)
        with (
            tqdm(total=len(left), desc=task.name, unit="img", bar_format=BAR, disable=hidden) as bar,
            ticking(bar),
            warnings.catch_warnings(),  # here, since it is not for threads
            Background(ahead=count) as writer,
            Solvers(count) as team,
        ):
            warnings.simplefilter("ignore", RuntimeWarning)  # samples that became NaN are in the manifest
            told = (out, task, networks, manifest, settings, digest_of(settings), seed, intensities)
            run = Run(*told, bar, transfer, writer, team)
            for source, reason in broken.items() if share.rank == 0 else ():
                run.refuse(source, reason)
            solve_all(run, left, batch_pixels)
    with FileLock(lock_of(out / "gather")):  # one process at a time, after its share: the last one finds everything
        results = manifest.results if share.world == 1 else read_results(out)
        incomplete = put_together(everything, out) if task.makes_images else ()
    items = [source.item for source in (*everything, *broken)]
    whole = tuple(results[item] for item in items) if all(item in results for item in items) else None
    done = tuple(line for line in run.made if line.status == "done")
    failed = tuple(line for line in run.made if line.status != "done")
    return Summary(out, done, tuple(skipped.values()), failed, whole, incomplete, str(found), tuple(everything))


def check_numbers(intensities: Range | None, **counts: int | None) -> None:
    """ValueError for intensities that are no range, or counts below 1."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if intensities is not None and not -float("inf") < intensities[0] < intensities[1] < float("inf"):
        raise ValueError(f"intensities must be (low, high), finite and low < high, got {tuple(intensities)}")


def settings_of(task: Task, networks: Networks, intensities: Range | None, seed: int | None = None) -> dict:
    """What decides a result besides its image; `seed` of the noise of simulated measurements."""
    settings = task.settings() | {"model": networks.fingerprint}
    settings |= {"simulate": False} if seed is None else {"simulate": True, "seed": seed}
    return settings | ({} if intensities is None else {"intensities": list(intensities)})


def solve_all(run: Run, sources: list[Source], batch_pixels: int) -> None:
    """Read the images, solve them in batches and have them kept; `run.writer` may still be busy afterwards."""
    batches = bucketed(usable(run, sources), lambda loaded: loaded.samples, batch_pixels, lambda loaded: loaded.kind)
    uploaded = ((batch, *run.transfer.upload([loaded.samples for loaded in batch])) for batch in batches)
    with contextlib.closing(ahead_of_time(uploaded)) as stream:
        for batch, y, event in stream:
            start = run.solvers.submit if y.numel() <= batch_pixels else run.solvers.alone
            start(solve, run, batch, run.transfer.arrived(y, event))


def content_of(task: Task, simulate: bool, intensities: Range | None) -> Content:
    """What counts of containers: measurements that are no images, or images of a type that says what 0 and 1 are."""
    return (None if simulate else task.problem.arrays) or Images(any_type=intensities is not None)


def check_places(sources: list[Source], out: Path, simulate: bool) -> None:
    """No result may take the place of an image, nor of what a job keeps beside its results."""
    places, folders = {source.place for source in sources}, (out, out / DEGRADED_FOLDER) if simulate else (out,)
    taken = {identity(folder / place) for folder in folders for place in places} - {None}
    for source in sources:
        if taken and identity(source.path) in taken:
            raise ValueError(f"out must not be the folder of the images, {out}: they would be overwritten")
        if simulate and source.place.parts[0] == DEGRADED_FOLDER and len(source.place.parts) > 1:
            raise ValueError(
                f"{source.path} must not be in a folder called {DEGRADED_FOLDER}, which simulated measurements lie in; "
                "reconstruct that folder by itself"
            )


@dataclass(frozen=True)
class InFolder:
    """Whether a result is in a folder, and is that of the image that is there now."""

    out: Path

    def has(self, source: Source) -> bool:
        return source.is_there(self.out)

    def is_current(self, source: Source, result: ItemResult) -> bool:
        return result.source_sha256 == source.sha256()

    def where(self, source: Source) -> str:
        return str(source.result(self.out))

    def __str__(self) -> str:
        return str(self.out)


def finished(sources: list[Source], results: Results, settings: dict, makes_images: bool, there: InFolder) -> Results:
    """Results that are there and are what this job would make.

    A file that is none of these is not overwritten: an error says what it is. A number is not worth that, its line
    is followed by another one; but numbers of two settings do not belong into one manifest.
    """
    found, digest = {}, digest_of(settings)
    for source in sources:
        result = results.get(source.item)
        recorded = result is not None and result.status == "done"
        if not (there.has(source) if makes_images else recorded):
            continue
        if not recorded:
            why = f"is not recorded in its {MANIFEST}"
        elif result.digest != digest:
            why = f"is a result of other settings ({differences(result.settings, settings)})"
        elif there.is_current(source, result):
            found[source.item] = result
            continue
        elif makes_images or result.source != str(source):
            why = f"is a result of another {source}"
        else:
            continue  # an image that has changed: scored again
        where = there.where(source) if makes_images else f"{there}/{MANIFEST}: {source.item}"
        raise ValueError(f"out must not hold {where}, which {why}; nothing is overwritten, choose another folder")
    return found


def differences(there: dict, here: dict) -> str:
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    shown = [[json.dumps(of[name]) if name in of else "not set" for of in (there, here)] for name in names]
    return "; ".join(f"{name} {a} there, {b} now" for name, (a, b) in zip(names, shown, strict=True))
