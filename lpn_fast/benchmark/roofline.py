"""The roofline as a picture: what was reached over the operations per byte, below what the device can do at most."""

from pathlib import Path

from .results import Result

MARKS = {"prox": "o", "value": "s", "hvp": "^", "gradient of R": "v", "step": "D", "reconstruct": "P", "invert": "X"}


def draw(result: Result, path: Path) -> None:
    """Write the picture; ImportError where matplotlib is missing (extra [plot])."""
    from ..display import figure

    copy, peak = result.ceilings["copy_gbytes"], result.ceilings["gemm_gflops"] / 1e3
    picture, (axes,) = figure(1)
    picture.set_size_inches(7.0, 5.0)
    points = [row for row in result.rows if row.tflops and row.gbytes_per_s]
    intensities = [1e3 * row.tflops / row.gbytes_per_s for row in points]
    ridge = 1e3 * peak / copy
    ends = [min([ridge / 10, *intensities]) / 2, max([ridge * 10, *intensities]) * 2]
    axes.loglog([ends[0], ridge, ends[1]], [ends[0] * copy / 1e3, peak, peak], color="black", label="measured ceiling")
    ways = sorted({row.way for row in points})
    for row, intensity in zip(points, intensities, strict=True):
        colour = f"C{ways.index(row.way)}"
        axes.loglog([intensity], [row.tflops], MARKS.get(row.work, "."), color=colour, markersize=5)
    for number, way in enumerate(ways):
        axes.plot([], [], "o", color=f"C{number}", label=way)
    for work in sorted({row.work for row in points}):
        axes.plot([], [], MARKS.get(work, "."), color="gray", label=work)
    axes.set_xlabel("floating-point operations per byte")
    axes.set_ylabel("TFLOP/s of the network's own operations")
    axes.set_title(str(result.where["device"]), fontsize=9)
    axes.legend(fontsize=7)
    picture.savefig(path)
