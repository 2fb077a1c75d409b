"""Value of the learned prior per image.

Score images by the learned prior: R(x) = <y, x> - 1/2 |x|^2 - psi(y) where f(y) = x. Small is likely under the
model. y is found by inverting the network; `residual` is |f(y) - x| / |x| and says how far to trust a value.
Values compare between images of one size only. The same command goes on where it stopped.

examples:
  lpn-fast prior images/ -o scores.csv --sigma 0.05
  lpn-fast prior "scans/*.png" -o scores.csv --model runs/ct/model.safetensors --sigma 0.05
  lpn-fast prior images/ photos.zip -o scores.csv --sigma 0.05 --tol 1e-10 --double
"""

from pathlib import Path

from .. import atomic, pipeline
from ..ops.solve import EQUATION_METHODS
from ..pipeline.manifest import read_results
from . import batch
from .tables import csv_text

SAME = ("value", "residual", "converged", "verdict", "iterations", "width", "height", "channels", "source_sha256")
COLUMNS = {"image": "source", **{name: name for name in SAME}, "settings": "digest"}  # heading: field of a result
JOB = ".job"  # added to the file's name: the folder of the job's manifest, of which the file is written at the end


def add_arguments(parser) -> None:
    batch.add_job(parser, "CSV", f"file of scores; FILE{JOB} beside it is the job's memory")
    add = parser.add_argument
    add("--sigma", type=float, metavar="S", help="noise level, for a noise-conditional model")
    add("--tol", type=float, default=1e-5, help="bound on the residual (default: %(default)g)")
    add("--max-iter", type=int, metavar="N", help="most steps per image (default: the method's)")
    add("--method", choices=tuple(EQUATION_METHODS), default="lbfgs", help="default: %(default)s")
    add("--double", action="store_true", help="refine in double precision, for tolerances below 1e-6")


def run(args) -> int:
    """Score what is left; 1 if an image could not be read or is not finite, else 0."""
    table = Path(args.out)
    job = table.with_name(table.name + JOB)
    _check_table(table, job)
    task = pipeline.Score(args.sigma, args.tol, args.max_iter, args.method, args.double)
    model, share = batch.prepare(args)
    summary = batch.work(args, task, model, share, job)
    if summary.everything is None:  # others are not done yet
        return 0
    if late := sum(result.converged is False for result in summary.everything):
        print(f"{late} values did not converge; do not trust them, see `residual` and `verdict`")
    # the images that were named, in that order, then those of earlier calls
    results = {result.item: result for result in summary.everything} | read_results(job)
    done = [result for result in results.values() if result.status == "done"]
    rows = [[getattr(result, field) for field in COLUMNS.values()] for result in done]
    atomic.write(table, csv_text(COLUMNS, rows).encode(errors="backslashreplace"))
    return batch.exit_code(summary)


def _check_table(table: Path, job: Path) -> None:
    """What is there already must be a file of this command, whose numbers are in the manifest beside it."""
    if not table.exists():
        return
    if not table.is_file():
        raise ValueError(f"--out must be a file, {table} is none")
    header = csv_text(COLUMNS, ()).encode()
    with open(table, "rb") as file:
        if file.read(len(header)) != header:
            raise ValueError(f"--out must be a new file or one of this command, {table} has other columns")
    if not job.is_dir():
        raise ValueError(f"--out must not be {table}, whose scores have no record, {job}; choose another file")
