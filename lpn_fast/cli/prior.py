"""`lpn-fast prior`: the value of the learned prior for every image, as a CSV file.

One line per image, appended when it is known, so a run that was stopped goes on where it was. A colour
image given to a network of one channel is scored plane by plane: values add, the worst residual counts.
"""

import contextlib
import csv
import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .. import pipeline
from ..ops.solve import EQUATION_METHODS
from ..pipeline.batches import BATCH_PIXELS, bucketed, concatenated, to_samples
from ..pipeline.manifest import digest_of
from ..pipeline.tasks import fingerprint
from ..prior import Verdict, prior
from . import options

DESCRIPTION = """\
Score images by the learned prior: R(x) = <y, x> - 1/2 |x|^2 - psi(y) where f(y) = x. Small is likely under the
model. y is found by inverting the network; `residual` is |f(y) - x| / |x| and says how far to trust a value.
Values compare between images of one size only. The same command goes on where it stopped."""

EXAMPLES = """\
  lpn-fast prior images/ -o scores.csv --sigma 0.05
  lpn-fast prior "scans/*.png" -o scores.csv --model runs/ct/model.safetensors --sigma 0.05
  lpn-fast prior images/ -o scores.csv --sigma 0.05 --tol 1e-10 --double"""

# what a line says when not every plane converged: the gravest of their verdicts
GRAVITY = (Verdict.CONVERGED, Verdict.ITERATIONS, Verdict.STALLED, Verdict.OUTSIDE, Verdict.INVALID)


@dataclass(frozen=True)
class Score:
    """A line of the CSV file."""

    image: str  # as it was named
    value: float
    residual: float
    converged: bool
    verdict: str
    iterations: int
    width: int
    height: int
    channels: int
    source_sha256: str
    settings: str  # digest of model, sigma and tolerance


HEADER = tuple(field.name for field in fields(Score))


@dataclass(frozen=True)
class Unscored:
    """An image to be scored."""

    name: str
    sha256: str
    size: tuple[int, int, int]  # (C, H, W)
    samples: Tensor  # [planes, c, H, W]


def add_parser(subparsers) -> None:
    """Add the command to the parser's commands."""
    parser = options.add_command(subparsers, "prior", "value of the learned prior per image", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGES", help="files, folders or quoted patterns: png, jpg, tif, bmp, npy")
    add("-o", "--out", required=True, metavar="CSV", help="file of scores; continued if it is there")
    add("--model", default=options.DEFAULT_MODEL, metavar="NAME_OR_PATH", help="default: %(default)s")
    add("--sigma", type=float, metavar="S", help="noise level, for a noise-conditional model")
    add("--tol", type=float, default=1e-5, help="bound on the residual (default: %(default)g)")
    add("--max-iter", type=int, metavar="N", help="most steps per image (default: the method's)")
    add("--method", choices=tuple(EQUATION_METHODS), default="lbfgs", help="default: %(default)s")
    add("--double", action="store_true", help="refine in double precision, for tolerances below 1e-6")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    add("--batch-pixels", type=int, default=BATCH_PIXELS, metavar="N", help="pixels solved together")
    parser.set_defaults(run=run, when_interrupted="finished lines are kept, the same command goes on")


def run(args) -> int:
    """Score what is left; 1 if an image could not be read or is not finite, else 0."""
    options.set_threads(args.threads)
    paths = pipeline.find_images(args.images)
    model = options.load_image_model(args.model, args.device).requires_grad_(False)
    if model.is_noise_conditional and args.sigma is None:
        levels = model.spec.noise_levels
        raise ValueError(
            f"--sigma must be given, {args.model} has a prior for each level from {levels[0]:g} to {levels[-1]:g}"
        )
    settings = digest_of({"model": fingerprint(model), "sigma": args.sigma, "tol": args.tol, "double": args.double})
    solver = {
        "sigma": args.sigma,
        "tol": args.tol,
        "max_iter": args.max_iter,
        "method": args.method,
        "dtype": torch.float64 if args.double else None,
    }
    own = next(model.parameters())
    failed: list[str] = []
    late = 0
    with _open_scores(Path(args.out), settings) as (append, finished):
        left = [path for path in paths if finished.get(str(path)) != _sha256(path)]
        with tqdm(total=len(left), desc="prior", unit="img", disable=None) as bar:
            unscored = _read(left, model.spec.channels, failed, bar)
            for batch in bucketed(unscored, lambda item: item.samples, args.batch_pixels):
                result = prior(model, concatenated([item.samples for item in batch]).to(own), **solver)
                for score in _scores(batch, result, settings):
                    append(score)
                    late += not score.converged
                bar.update(len(batch))
    for message in failed:
        print(f"failed: {message}")
    if late:
        print(f"{late} images did not converge; do not trust their values, see `residual` and `verdict`")
    earlier = f", {len(paths) - len(left)} finished earlier" if len(left) < len(paths) else ""
    print(f"{len(left) - len(failed)} scored{earlier}, {len(failed)} failed -> {args.out}")
    return 1 if failed else 0


def _read(paths: list[Path], channels: int, failed: list[str], bar: tqdm) -> Iterator[Unscored]:
    for path in paths:
        try:
            pixels = pipeline.read_image(path).pixels  # (C, H, W)
            yield Unscored(str(path), _sha256(path), tuple(pixels.shape), to_samples(pixels, channels))
        except ValueError as error:  # unreadable, or of other channels
            failed.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            bar.update(1)


def _scores(batch: list[Unscored], result, settings: str) -> Iterator[Score]:
    start = 0
    for item in batch:
        own = slice(start, start + len(item.samples))
        start = own.stop
        verdicts = [Verdict(v) for v in result.inversion.verdict[own].tolist()]
        channels, height, width = item.size
        yield Score(
            image=item.name,
            value=float(result.value[own].sum()),
            residual=float(result.residual[own].max()),
            converged=bool(result.converged[own].all()),
            verdict=max(verdicts, key=GRAVITY.index).name.lower(),
            iterations=int(result.inversion.iterations[own].max()),
            width=width,
            height=height,
            channels=channels,
            source_sha256=item.sha256,
            settings=settings,
        )


@contextlib.contextmanager
def _open_scores(path: Path, settings: str):
    """(append, {image: sha256 of those scored}); a line cut short by a kill is removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        finished = _finished(path, whole.decode(errors="replace"), settings) if text else {}
        os.ftruncate(descriptor, len(whole))
        if not whole:
            os.write(descriptor, _line(HEADER))

        def append(score: Score) -> None:
            os.write(descriptor, _line(astuple(score)))

        yield append, finished
    finally:
        os.close(descriptor)


def _finished(path: Path, text: str, settings: str) -> dict[str, str]:
    rows = list(csv.reader(io.StringIO(text)))
    if rows and tuple(rows[0]) != HEADER or not rows and text:
        raise ValueError(f"out must be a file of this command or not exist, {path} has other columns")
    scores = [dict(zip(HEADER, row, strict=False)) for row in rows[1:]]
    if any(score.get("settings") != settings for score in scores):
        raise ValueError(f"{path} holds scores of another model, sigma or tolerance; choose another file")
    return {score["image"]: score["source_sha256"] for score in scores}


def _line(values) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue().encode()


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return ""
