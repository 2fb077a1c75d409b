"""A page about a finished job: pictures before and after, distributions, conditions of the theorem, numbers per image.

Everything on it is read from the manifest and from the files that it names, so that a job that was resumed gets the
page of one that was not. Of a large job some images are shown, see ORDERS.
"""

import math
import operator
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .. import pages
from ..io import Range, UnreadableImage
from ..io.sources import Source
from ..physics import MRI, Blur, Downsampling, Inpainting, LinearOperator, ParallelBeamCT
from ..solvers import Conditions
from .job import Summary
from .manifest import MANIFEST, ItemResult
from .problems import IMAGES, Problem
from .run import degraded_path
from .tasks import Task

MOST_PICTURES, MOST_LARGE = 48, 12  # images, and those of them whose pictures are large
MOST_ROWS = 2000  # of the table
# evenly spread by the first field that all of them have
ORDERS = {"psnr": "from the lowest PSNR to the highest", "value": "from the most likely to the least"}
Known = dict[str, list[float]]  # values of fields, as far as they are known
Pictures = dict[str, tuple[Tensor | None, Path]]  # by what they are: (C, H, W) or None if not to be shown, and where
COLUMNS = (  # heading, field of ItemResult, digits, heading of its distribution, if that is shown
    ("PSNR before", "psnr_before", 2, ""),
    ("SSIM before", "ssim_before", 4, ""),
    ("PSNR", "psnr", 2, "PSNR in dB"),
    ("SSIM", "ssim", 4, ""),
    ("prior", "value", 3, "value of the prior"),
    ("noise estimate", "noise_estimate", 4, "estimated noise"),
    ("sigma", "sigma", 4, ""),
    ("misfit", "misfit", 2, "misfit over noise"),
    ("objective", "objective_last", 3, "objective"),
    ("residual", "residual", 6, ""),
    ("iterations", "iterations", 0, ""),
    ("seconds", "seconds", 3, "seconds"),
)
DONE = {  # by task, or by its operator: what was done to so many images
    "denoise": "denoised",
    "prior": "scored by the learned prior",
    "blur": "deblurred",
    "inpaint": "with missing pixels filled in",
    "downsample": "enlarged",
    "ct": "reconstructed from sinograms (CT)",
    "mri": "reconstructed from k-space (MRI)",
    "cs": "reconstructed from random measurements",
    "matrix": "reconstructed from linear measurements",
}


def write_report(
    path: Path, summary: Summary, task: Task, model: str = "", command: str = "", conditions: Conditions | None = None
) -> Path:
    """Write the page, as a whole, about a finished job of that task; a ValueError for one that is not finished.

    `model` is for results that do not name theirs, `command` the command line, `conditions` the theorem's.
    """
    if summary.everything is None:
        raise ValueError("the report is about a finished job, got one of which images are missing")
    results = summary.everything
    done = [result for result in results if result.status == "done"]
    failed = [result for result in results if result.status != "done"]
    known = {field: [v for r in done if (v := getattr(r, field)) is not None] for _, field, _, _ in COLUMNS}
    settings = results[0].settings if results else task.settings()
    name, shown = settings.get("task", ""), _operator_picture(task.problem.physics)
    title = f"{len(done):,} image{'s' * (len(done) != 1)} {DONE.get(settings.get('physics', name), name)}"
    chosen, which = _chosen(done, known)
    given = task.expected_noise
    marks = {"noise_estimate": (given, f"given, {given}"), "misfit": (1.0, "what noise alone makes, 1")}
    plots = (pages.histogram(heading, known[f], *marks.get(f, ())) for _, f, _, heading in COLUMNS if heading)
    return pages.write(
        path,
        "report.html",
        title=title,
        facts=_facts(done, failed, known, settings, task, model),
        command=command,
        folder=(str(summary.out), pages.link(summary.out, path)),
        manifest=(MANIFEST, pages.link(summary.out / MANIFEST, path)),
        operator=None if shown is None else (shown[0], pages.picture(*shown)),
        cards=_cards(chosen, summary, path, task.problem),
        which=which,
        plots=[plot for plot in plots if plot is not None],
        conditions=conditions,
        condition_rows=[(c.name, c.required, c.actual, "yes" if c.holds else "no") for c in conditions or ()],
        failed=[(result.source, result.error) for result in failed],
        settings=[(name, _setting(value)) for name, value in settings.items()],
        rest=f"The first {MOST_ROWS:,} of {len(done):,}; all are in the manifest." if len(done) > MOST_ROWS else "",
        **_numbers(done, known),
    )


def _facts(done: list, failed: list, known: Known, settings: dict, task: Task, model: str) -> dict[str, str]:
    """What the head of the page says, as far as it is known."""
    late = sum(result.converged is False for result in done)
    facts = {"Images": f"{len(done):,} done, {len(failed):,} failed"}
    facts["Images"] += f", {late:,} did not converge within the iterations allowed" if late else ""
    used = Counter(result.model or model for result in done)
    each = (f"{name} ({count:,} images)" for name, count in used.most_common())
    facts["Model"] = next(iter(used)) if len(used) == 1 else ", ".join(each)
    facts["Operator"] = "" if task.problem is IMAGES else str(task.problem.physics)
    if settings.get("task") == "denoise":
        facts["Solver"] = "one evaluation of the network"
    elif "solver" in settings:
        by_name = f"{settings['solver']}, at most {settings.get('iterations')} iterations"
        facts["Solver"] = "chosen by lpn_fast.reconstruct" if settings["solver"] is None else by_name
    elif settings.get("sigma"):
        facts["Prior"] = f"at noise level {settings['sigma']:g}"
    if known["psnr"]:
        facts["Quality"] = f"{statistics.fmean(known['psnr']):.2f} dB, mean PSNR"
        facts["Quality"] += f"; {statistics.fmean(before):.2f} dB before" if (before := known["psnr_before"]) else ""
    noise = [] if task.expected_noise is None else [f"{task.expected_noise:g} given"]
    if shown := known["noise_estimate"]:
        span = "" if len(shown) == 1 else f" ({min(shown):.3g} to {max(shown):.3g})"
        whence = "measurements" if noise else "images"
        noise.append(f"{statistics.median(shown):.3g}{span} estimated from the {whence}")
    facts["Noise"] = ", ".join(noise)
    if seconds := known["seconds"]:
        facts["Time"] = f"{math.fsum(seconds):.1f} s to solve, {statistics.median(seconds):.3g} s an image"
    return {name: text for name, text in facts.items() if text}


def _setting(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_setting(inner)}" for name, inner in value.items())
    return "automatic" if value is None else ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _chosen(done: list[ItemResult], known: Known) -> tuple[list[ItemResult], str]:
    """The images to be shown, and which they are."""
    if len(done) <= MOST_PICTURES:
        return done, ""
    field = next((field for field in ORDERS if len(known[field]) == len(done)), None)
    if field is not None:
        done = sorted(done, key=operator.attrgetter(field))
    chosen = [done[round(k * (len(done) - 1) / (MOST_PICTURES - 1))] for k in range(MOST_PICTURES)]
    return chosen, f"{MOST_PICTURES} of {len(done):,}, {ORDERS.get(field, 'evenly spread over the job')}"


def _cards(chosen: list[ItemResult], summary: Summary, page: Path, problem: Problem) -> Iterator[dict]:
    """One at a time: a page may show many."""
    sources = {source.item: source for source in summary.sources}
    for position, result in enumerate(chosen):
        if result.item not in sources:
            continue
        shown = _pictures_of(result, sources[result.item], summary.out, problem)
        seen = {name: x for name, (x, _) in shown.items() if x is not None}
        pair = [name for name in seen if name != "measured"]  # to be laid over each other
        pair = pair if len(pair) > 1 else []
        pictures = [pages.picture(name, x, name in pair, position >= MOST_LARGE) for name, x in seen.items()]
        before = "" if result.psnr_before is None else f"{result.psnr_before:.2f} to "
        gain = "" if result.psnr is None else f", {before}{result.psnr:.2f} dB"
        gain += "" if result.value is None else f", prior {result.value:.4g}"
        yield {
            "name": result.item,
            "caption": f"{result.width} x {result.height}{gain}",
            "pictures": pictures,
            "missing": [name for name in shown if name not in seen],
            "links": [(name, pages.link(file, page)) for name, (_, file) in shown.items()],
            "shape": next((picture.shape for picture in reversed(pictures) if picture.paired), None),
            "notes": result.notes,
        }


def _numbers(done: list[ItemResult], known: Known) -> dict:
    """Heading, rows and means of the columns in which anything is known."""
    columns = [column for column in COLUMNS if known[column[1]]]

    def cells(first: str, values: Iterable[float | None]) -> list[str]:
        shown = zip(columns, values, strict=True)
        return [first, *("" if value is None else f"{value:.{digits}f}" for (_, _, digits, _), value in shown)]

    return {
        "header": ["image", *(column[0] for column in columns)],
        "numbers": [cells(r.item, (getattr(r, column[1]) for column in columns)) for r in done[:MOST_ROWS]],
        "means": cells("mean", (statistics.fmean(known[column[1]]) for column in columns)) if len(done) > 1 else None,
    }


def _operator_picture(physics: LinearOperator) -> tuple[str, Tensor] | None:
    """A caption and the picture (1, H, W) of kernel, mask or directions; None where there is none."""
    if isinstance(physics, Blur | Downsampling):
        kernel = (physics if isinstance(physics, Blur) else physics.blur).kernel
        kernel = kernel.reshape(-1, *kernel.shape[-2:])[:1]
        return f"blur kernel, {kernel.shape[2]} x {kernel.shape[1]} pixels", kernel / kernel.max()
    if isinstance(physics, Inpainting | MRI):
        mask = physics.mask.double().reshape(-1, *physics.mask.shape[-2:])[:1]
        known = f"{100 * float(mask.mean()):.0f} %"
        if isinstance(physics, MRI):
            return f"frequencies measured, {known}; zero is in the middle", torch.fft.fftshift(mask, dim=(-2, -1))
        return f"pixels known, {known}", mask
    if isinstance(physics, ParallelBeamCT):  # a projection knows the frequencies on a line through zero, at its angle
        half = 48  # pixels of the picture to each side of zero
        v, u = torch.meshgrid(-torch.arange(-half, half + 1.0), torch.arange(-half, half + 1.0), indexing="ij")
        angles = torch.tensor(physics.geometry.angles)[:, None, None]
        seen = (1 - (v * angles.cos() - u * angles.sin()).abs()).amax(0).clamp_min(0)
        inside = u.square() + v.square() <= half**2
        return f"the {len(angles)} directions of view, as lines of frequencies", (seen * inside)[None]
    return None


def _pictures_of(result: ItemResult, source: Source, out: Path, problem: Problem) -> Pictures:
    """What there is to see of an image that is done; all but "measured" show the same place."""
    intensities, simulated = result.settings.get("intensities"), bool(result.settings.get("simulate"))

    def image(source: Source) -> Tensor | None:
        try:
            return source.read(intensities)[0].pixels
        except UnreadableImage:  # removed since
            return None

    if result.value is not None:  # scored: nothing was made
        return {"image": (image(source), source.path)}
    packed = out / source.place  # of a container that is complete, else there are files
    is_packed = source.member is not None and packed.exists()
    kept = replace(source, path=packed) if is_packed else _file(source.result(out))
    measured = _file(degraded_path(source, out, problem)) if simulated else source
    after = image(kept)
    if problem.arrays is not None:
        pictures: Pictures = {"measured": (_measurement(measured, problem, simulated, intensities), measured.path)}
        pictures["result"] = after, kept.path
    else:
        y = image(measured)
        if y is not None and after is not None:  # no more than lies over the result
            cropped = problem.cropped(y, tuple(after.shape[-2:]))
            y = y if cropped is None else cropped
        pictures = {"before": (y, measured.path), "after": (after, kept.path)}
    if simulated:
        truth = image(source)
        pictures["truth"] = None if truth is None else problem.framed(truth), source.path
    return pictures


def _measurement(source: Source, problem: Problem, simulated: bool, intensities: Range | None) -> Tensor | None:
    """A sinogram from its least to its largest value, or the logarithm of k-space; vectors are no pictures."""
    try:
        array, _ = source.read_array()
        y = torch.tensor(array) if simulated else problem.measured(array, intensities)
    except ValueError:
        return None
    if isinstance(problem.physics, MRI):
        size = y[0].flatten(0, -3).norm(dim=0)  # (H, W)
        return pages.stretched(torch.fft.fftshift(size / size[size > 0].median().clamp_min(1e-12)).log1p()[None])
    return pages.stretched(y[:1]) if isinstance(problem.physics, ParallelBeamCT) else None


def _file(path: Path) -> Source:
    return Source(path, Path(path.name))
