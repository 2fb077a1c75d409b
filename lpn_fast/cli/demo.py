"""`lpn-fast demo`: see it work, in a minute, without data or arguments.

A photograph is deblurred, a phantom and a CT slice are reconstructed from few views, and another photograph gets its
missing pixels back: each by `lpn_fast.reconstruct` with nothing tuned, beside what scikit-image has for it.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .. import metrics, pages
from ..restoration import reconstruct
from . import options
from .demo_cases import Case, cases
from .tables import table

DESCRIPTION = """\
Deblur a photograph, reconstruct CT images from few views and fill in missing pixels, with nothing tuned, beside what
scikit-image has for it. Under a minute on one CPU core. Writes one page, index.html, and opens nothing."""

EXAMPLES = """\
  lpn-fast demo
  lpn-fast demo -o pictures --quick          smaller images"""

OURS = "lpn_fast.reconstruct"
SIDE, QUICK_SIDE = 256, 128  # pixels of photographs
HEADER = ("image", "method", "PSNR", "CPU seconds")


@dataclass(frozen=True)
class Answer:
    """What a method makes of a measurement: an image (C, H, W), its PSNR in dB, seconds of processor time."""

    name: str
    x: Tensor
    psnr: float
    seconds: float


def add_parser(subparsers) -> None:
    """Add the command to the parser's commands."""
    parser = options.add_command(subparsers, "demo", "see it work", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("demo_output"), metavar="DIR", help="(default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="smaller images")
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1, as many as scikit-image uses)"
    )
    parser.set_defaults(when_interrupted="nothing was written")


def run(args) -> int:
    """Run the demo; the exit code."""
    options.set_threads(args.threads)
    page = args.out / "index.html"
    pages.check_target(page)
    shown, missing = cases(QUICK_SIDE if args.quick else SIDE)
    for line in missing:
        print(f"note: {line}")
    solved = [(case, *solve(case)) for case in tqdm(shown, desc="demo", unit="img", disable=None)]
    args.out.mkdir(parents=True, exist_ok=True)
    write(page, solved, missing)
    print(table(HEADER, [row for case, _, answers in solved for row in rows(case, answers)]))
    print(f"\npage: {page}")
    return 0


def write(page: Path, solved: list[tuple[Case, Tensor, list[Answer]]], missing: list[str]) -> Path:
    """Write the page about cases and what `solve` made of them."""
    return pages.write(
        page,
        "demo.html",
        title="Images from measurements, with nothing tuned",
        cards=[_card(*parts) for parts in solved],
        missing=missing,
        threads=torch.get_num_threads(),
    )


def solve(case: Case) -> tuple[Tensor, list[Answer]]:
    """The measurement (C, ...), and what every method makes of it; ours is the last one."""
    y = case.measured()
    plain = y[0].double().numpy()
    answers = []
    for name, (method, weights) in case.alternatives.items():
        found = [
            _answer(name, case.truth, lambda m=method, w=w: torch.from_numpy(m(plain, w)).float()) for w in weights
        ]
        answers.append(max(found, key=lambda answer: answer.psnr))
    return y[0], [*answers, _answer(OURS, case.truth, lambda: reconstruct(y, case.physics, noise=case.noise).x[0])]


def rows(case: Case, answers: list[Answer]) -> list[tuple]:
    """Of the table."""
    return [(case.title, answer.name, answer.psnr, answer.seconds) for answer in answers]


def _answer(name: str, truth: Tensor, compute) -> Answer:
    started = time.process_time()  # what other programs do to the machine does not matter
    x = compute()
    seconds = time.process_time() - started
    return Answer(name, x, float(metrics.psnr(x[None].clamp(0, 1), truth[None])), seconds)


def _card(case: Case, y: Tensor, answers: list[Answer]) -> dict:
    """Every picture in the intensities of the truth, so that a slice is not all dark."""
    low, high = (0.0, 1.0) if len(case.truth) == 3 else (float(case.truth.min()), float(case.truth.max()))
    is_image = y.shape == case.truth.shape
    first = "measured" if is_image else answers[0].name  # what the slider shows beside ours
    panels = [("measured", pages.picture("measured", y if is_image else pages.stretched(y), is_image), "", False)]
    best = max(answer.psnr for answer in answers)
    for answer in answers:
        x = (answer.x - low) / (high - low)
        numbers = f"{answer.psnr:.2f} dB, {answer.seconds:.2g} s"
        picture = pages.picture(answer.name, x, answer.name in (first, OURS))
        panels.append((answer.name, picture, numbers, answer.psnr == best))
    panels.append(("truth", pages.picture("truth", (case.truth - low) / (high - low), True), "", False))
    return {"case": case, "panels": panels, "shape": panels[-1][1].shape}
