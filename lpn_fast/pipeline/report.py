"""A page about a finished job: pictures before and after, distributions, conditions of the theorem, numbers per image.

Everything on it is read from the manifest and from the files that it names, so that a job that was resumed gets the
page of one that was not. Of a large job some images are shown: evenly spread from the worst to the best where that is
known, else over the job.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from .. import pages
from ..io import Range
from ..solvers import Conditions
from .illustrations import of_item, of_operator
from .job import Summary
from .manifest import NAME as MANIFEST
from .manifest import ItemResult
from .tasks import Task

MOST_PICTURES, MOST_LARGE = 48, 12  # images, and those of them whose pictures are large
MOST_ROWS = 2000  # of the table

COLUMNS = (  # heading, field of ItemResult, digits
    ("PSNR before", "psnr_before", 2),
    ("SSIM before", "ssim_before", 4),
    ("PSNR", "psnr", 2),
    ("SSIM", "ssim", 4),
    ("prior", "value", 3),
    ("noise estimate", "noise_estimate", 4),
    ("sigma", "sigma", 4),
    ("misfit", "misfit", 2),
    ("objective", "objective_last", 3),
    ("residual", "residual", 6),
    ("iterations", "iterations", 0),
    ("seconds", "seconds", 3),
)
PLOTS = (  # heading, field
    ("PSNR in dB", "psnr"),
    ("estimated noise", "noise_estimate"),
    ("misfit over noise", "misfit"),
    ("value of the prior", "value"),
    ("objective", "objective_last"),
    ("seconds", "seconds"),
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
    path: str | Path,
    summary: Summary,
    task: Task,
    *,
    model: str = "",
    command: str = "",
    conditions: Conditions | None = None,
    intensities: Range | None = None,
) -> Path:
    """Write the page, as a whole, about a finished job of that task; a ValueError for one that is not finished.

    `model` is for results that do not name theirs, `command` the command line, `conditions` those of the solver's
    theorem, `intensities` those of the job.
    """
    if summary.everything is None:
        raise ValueError("the report is about a finished job, got one of which images are missing")
    path, results = Path(path), summary.everything
    done = [result for result in results if result.status == "done"]
    failed = [result for result in results if result.status != "done"]
    settings = results[0].settings if results else task.settings()
    problem, operator = task.problem, of_operator(task.problem)
    is_of_level = settings.get("task") == "prior" and settings["sigma"]
    facts = {
        "Images": _counts(done, failed),
        "Model": _models(done, model),
        "Operator": "" if problem is None else str(problem),
        "Solver": _solver(settings),
        "Prior": f"at noise level {settings['sigma']:g}" if is_of_level else "",
        "Quality": _quality(done),
        "Noise": _noise(done, task),
        "Time": _time(done),
    }
    chosen, which = _chosen(done)
    return pages.write(
        path,
        "report.html",
        title=_title(settings, len(done)),
        facts={name: text for name, text in facts.items() if text},
        command=command,
        folder=(str(summary.out), pages.link(summary.out, path)),
        manifest=(MANIFEST, pages.link(summary.out / MANIFEST, path)),
        operator=None if operator is None else (operator[0], pages.picture(*operator)),
        cards=_cards(chosen, summary, path, problem, intensities),
        which=which,
        plots=_plots(done, task),
        conditions=conditions,
        condition_rows=[(c.name, c.required, c.actual, "yes" if c.holds else "no") for c in conditions or ()],
        failed=[(result.source, result.error) for result in failed],
        settings=[(name, _setting(value)) for name, value in settings.items()],
        rest=f"The first {MOST_ROWS:,} of {len(done):,}; all are in the manifest." if len(done) > MOST_ROWS else "",
        **_numbers(done),
    )


def _title(settings: dict, count: int) -> str:
    task = str(settings.get("task", ""))
    return f"{count:,} image{'s' * (count != 1)} {DONE.get(str(settings.get('physics', task)), task)}"


def _solver(settings: dict) -> str:
    if "solver" not in settings:
        return "one evaluation of the network" if settings.get("task") == "denoise" else ""
    name = settings["solver"]
    return "chosen by lpn_fast.reconstruct" if name is None else f"{name}, at most {settings['iterations']} iterations"


def _setting(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_setting(inner)}" for name, inner in value.items())
    return "automatic" if value is None else ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _counts(done: list[ItemResult], failed: list[ItemResult]) -> str:
    late = sum(result.converged is False for result in done)
    parts = [f"{len(done):,} done", f"{len(failed):,} failed"]
    return ", ".join(parts + [f"{late:,} did not converge within the iterations allowed"] * (late > 0))


def _models(done: list[ItemResult], given: str) -> str:
    used = Counter(result.model or given for result in done)
    if len(used) == 1:
        return next(iter(used))
    return ", ".join(f"{name} ({count:,} images)" for name, count in used.most_common())


def _quality(done: list[ItemResult]) -> str:
    after = _mean(result.psnr for result in done)
    if after is None:
        return ""
    before = _mean(result.psnr_before for result in done)
    return f"{after:.2f} dB, mean PSNR" + ("" if before is None else f"; {before:.2f} dB before")


def _noise(done: list[ItemResult], task: Task) -> str:
    """What was given beside what the images show."""
    parts = [] if task.expected_noise is None else [f"{task.expected_noise:g} given"]
    shown = [result.noise_estimate for result in done if result.noise_estimate is not None]
    if shown:
        span = "" if len(shown) == 1 else f" ({min(shown):.3g} to {max(shown):.3g})"
        parts.append(f"{statistics.median(shown):.3g}{span} estimated from the {'measurements' if parts else 'images'}")
    return ", ".join(parts)


def _time(done: list[ItemResult]) -> str:
    seconds = [result.seconds for result in done if result.seconds is not None]
    return f"{math.fsum(seconds):.1f} s to solve, {statistics.median(seconds):.3g} s an image" if seconds else ""


def _plots(done: list[ItemResult], task: Task) -> list[pages.Histogram]:
    given = task.expected_noise
    marks = {"noise_estimate": (given, f"given, {given}"), "misfit": (1.0, "what noise alone makes, 1")}
    found = (
        pages.histogram(heading, [getattr(result, field) for result in done], *marks.get(field, ()))
        for heading, field in PLOTS
    )
    return [plot for plot in found if plot is not None]


def _chosen(done: list[ItemResult]) -> tuple[list[ItemResult], str]:
    """The images to be shown, and which they are."""
    if len(done) <= MOST_PICTURES:
        return done, ""
    order = "evenly spread over the job"
    for field, words in (
        ("psnr", "from the lowest PSNR to the highest"),
        ("value", "from the most likely to the least"),
    ):
        if all(getattr(result, field) is not None for result in done):
            done, order = sorted(done, key=lambda result: getattr(result, field)), words
            break
    last = len(done) - 1
    places = [round(k * last / (MOST_PICTURES - 1)) for k in range(MOST_PICTURES)]
    return [done[place] for place in places], f"{MOST_PICTURES} of {len(done):,}, {order}"


def _cards(
    chosen: list[ItemResult], summary: Summary, page: Path, problem, intensities: Range | None
) -> Iterable[dict]:
    """One at a time: a page may show many."""
    sources = {source.item: source for source in summary.sources}
    for position, result in enumerate(chosen):
        source = sources.get(result.item)
        if source is None:
            continue
        shown = of_item(result, source, summary.out, problem, intensities)
        known = {name: x for name, (x, _) in shown.items() if x is not None}
        pair = [name for name in known if name != "measured"]  # to be laid over each other
        pictures = [
            pages.picture(name, x, len(pair) > 1 and name in pair, position >= MOST_LARGE) for name, x in known.items()
        ]
        before = "" if result.psnr_before is None else f"{result.psnr_before:.2f} to "
        gain = "" if result.psnr is None else f", {before}{result.psnr:.2f} dB"
        gain += "" if result.value is None else f", prior {result.value:.4g}"
        yield {
            "name": result.item,
            "caption": f"{result.width} x {result.height}{gain}",
            "pictures": pictures,
            "missing": [name for name in shown if name not in known],
            "links": [(name, pages.link(file, page)) for name, (_, file) in shown.items()],
            "shape": next((picture.shape for picture in reversed(pictures) if picture.paired), None),
            "notes": result.notes,
        }


def _numbers(results: Sequence[ItemResult]) -> dict:
    """Heading, rows and means of the columns in which anything is known."""
    columns = [column for column in COLUMNS if any(getattr(r, column[1]) is not None for r in results)]
    means = ["mean", *(_number(_mean(getattr(r, name) for r in results), digits) for _, name, digits in columns)]
    return {
        "header": ["image", *(heading for heading, _, _ in columns)],
        "numbers": [
            [r.item, *(_number(getattr(r, name), digits) for _, name, digits in columns)] for r in results[:MOST_ROWS]
        ],
        "means": means if len(results) > 1 else None,
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
