"""`python -m bench.docs_figures`: the figures of the documentation, drawn into lpn_fast/docs/figures.

    laplacian.png    psi, f and R of a 1-D network trained by proximal matching, against soft thresholding and |x|
    descent.png      PGD on a blurred picture: the objective above its last value, for four strengths
    task-*.png       what the code of the page of that name writes

`--only task-ct` draws one of them. Under three minutes on two cores; lpn-fast and torchrun have to be in the path.
"""

import argparse
import contextlib
import functools
import tempfile
from pathlib import Path

import matplotlib
import torch
from PIL import Image

import lpn_fast as lf
from lpn_fast.data.synthetic import synthetic_images
from lpn_fast.training import soft_threshold, train_laplacian

from .notebook import run

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DOCS = Path(lf.__file__).parent / "docs"
FIGURES = DOCS / "figures"
PICTURE = "before_after.png"  # in the code of a page that shows one
STRENGTHS = (1.0, 0.5, 0.2, 0.05)
ITERATIONS, EXTRA = 60, 40  # drawn; and further ones towards the limit that is subtracted


def laplacian(path: Path) -> None:
    """psi, f and R over the line."""
    model = train_laplacian("matching", steps=1500, progress=False).double()
    u = torch.linspace(-4, 4, 801, dtype=torch.float64)[:, None]
    with torch.no_grad():
        psi, f = model.potential_and_prox(u)
        x, value = model.prox_and_prior(u)
    centre = value.min()  # R is known up to a constant
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9, 2.7))
    left.plot(u[:, 0], psi - psi.min())
    left.set(title="potential ψ, convex", xlabel="u")
    middle.plot(u[:, 0], f[:, 0], label="f = ∇ψ")
    middle.plot(u[:, 0], soft_threshold(u)[:, 0], "k:", label="soft thresholding")
    middle.set(title="f = prox of R", xlabel="u")
    right.plot(x[:, 0], value - centre, label="R")
    right.plot(x[:, 0], x[:, 0].abs(), "k:", label="|x|")
    right.set(title="prior R", xlabel="x")
    for axes in (middle, right):
        axes.legend(frameon=False)
    _save(figure, path)


def descent(path: Path) -> None:
    """Objectives, float64."""
    model = lf.pretrained("frame-gray").double()
    truth = torch.from_numpy(synthetic_images("dead-leaves", 1, 96)).double()
    physics = lf.physics.Blur.gaussian(1.6)
    y = physics.A(truth) + 0.03 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)).double()
    figure, axes = plt.subplots(figsize=(6, 3))
    for strength in STRENGTHS:
        result = lf.solvers.pgd(y, physics, model, strength=strength, sigma=0.03, max_iter=ITERATIONS + EXTRA, tol=0.0)
        objective = result.objective[:, 0]
        rises = int((objective.diff() > 0).sum())
        print(f"strength {strength:g}: {rises} rises in {len(objective) - 1} iterations")
        axes.semilogy((objective - objective[-1])[:ITERATIONS], label=f"strength {strength:g}")
    axes.set(xlabel="iteration", ylabel="objective − last")
    axes.legend(frameon=False)
    _save(figure, path)


def _save(figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})  # the same bytes from the same versions
    plt.close(figure)
    print(f"wrote {path.name}")


def task(page: Path, path: Path) -> None:
    """The picture that a page's code writes, in as few bytes as its grays need."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        run(page.read_text(encoding="utf-8"))
        with Image.open(PICTURE) as picture:
            picture.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"wrote {path.name}")


def main(arguments: list[str] | None = None) -> None:
    """Draw them all, or one."""
    parser = argparse.ArgumentParser(prog="python -m bench.docs_figures", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", metavar="NAME", help="one figure, such as descent or task-ct")
    only = parser.parse_args(arguments).only
    drawn = {"laplacian": laplacian, "descent": descent}
    drawn |= {page.stem: functools.partial(task, page) for page in sorted(DOCS.glob("task-*.md"))}
    if only is not None and only not in drawn:
        parser.error(f"--only must be one of {', '.join(drawn)}, got {only!r}")
    FIGURES.mkdir(parents=True, exist_ok=True)
    for name in [only] if only else drawn:
        drawn[name](FIGURES / f"{name}.png")


if __name__ == "__main__":
    main()
