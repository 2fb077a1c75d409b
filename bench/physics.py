"""`python -m bench.physics ct`: the tomography operator at the published geometry, measured here and now.

    python -m bench.physics ct              forward, adjoint, FBP; batches of 8 and 1; all threads
    python -m bench.physics ct --batch 4    another batch

512 x 512 pixels, 200 angles, 400 bins. Goals per image: 0.16 s forward and 1.28 s adjoint, a fifth of the 0.8 s and
6.4 s measured for deepinv 0.5's Tomography on two cores at 512 x 512 pixels and 200 angles; peak memory under 2 GB.
Where deepinv can be imported its Tomography is timed in the same rounds; its detector has as many bins as the
diagonal has pixels, 725 here, and cannot be set to 400. Writes bench/results/physics_ct_<isa>_<threads>t.csv.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from lpn_fast.benchmark.memory import MMAP_THRESHOLD, peak_megabytes
from lpn_fast.benchmark.surroundings import isa, surroundings
from lpn_fast.benchmark.timing import interleaved, ratios, spread
from lpn_fast.physics import ParallelBeamCT

from .report import Measurement, write

GOALS = {"forward": 0.16, "adjoint": 1.28}  # seconds per image
MEMORY_GOAL = 2048.0  # MB
MODES = ("forward", "adjoint", "fbp")
LAYOUT = "{:<9}{:>6}  {:<9}{:>12}  {:>20}  {:>10}{:>10}  {}"


def calls(mode: str, batch: int, dtype: torch.dtype = torch.float32) -> dict:
    """Provider -> function without arguments, on the same random images."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, 1, 512, 512, generator=generator, dtype=torch.float64).to(dtype)
    ct = ParallelBeamCT.published()
    y = ct.A(x)
    ours = {"forward": lambda: ct.A(x), "adjoint": lambda: ct.A_adjoint(y), "fbp": lambda: ct.fbp(y)}
    found = {"ours": ours[mode]}
    if importlib.util.find_spec("deepinv") and mode != "fbp":
        found["deepinv"] = _deepinv(mode, x)
    return found


def _deepinv(mode: str, x: torch.Tensor):
    import deepinv

    theirs = deepinv.physics.Tomography(angles=200, img_width=512, device="cpu")
    y = theirs.A(x)
    return (lambda: theirs.A(x)) if mode == "forward" else (lambda: theirs.A_adjoint(y))


def error(mode: str) -> float:
    """Relative L2 distance of the compiled float32 result from the torch operations in float64, one image."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1, 1, 512, 512, generator=generator, dtype=torch.float64)
    plain, ct = ParallelBeamCT.published(backend="torch"), ParallelBeamCT.published()
    y = plain.A(x)
    maps = {
        "forward": lambda p, kind: p.A(x.to(kind)),
        "adjoint": lambda p, kind: p.A_adjoint(y.to(kind)),
        "fbp": lambda p, kind: p.fbp(y.to(kind)),
    }
    got, truth = maps[mode](ct, torch.float32).double(), maps[mode](plain, torch.float64)
    return ((got - truth).norm() / truth.norm()).item()


def run_ct(batches: list[int], rounds: int, seconds: float, threads: int) -> list[Measurement]:
    """Measure, print the table line by line, and return the rows."""
    torch.set_num_threads(threads)
    where = surroundings(threads)
    print(f"{where['device']}, {threads} threads, torch {where['torch']}, commit {where['commit']}")
    print(LAYOUT.format("mode", "batch", "provider", "s per image", "p20..p80", "peak MB", "rel err", "").rstrip())
    rows = []
    for mode in MODES:
        wrong = error(mode)
        for batch in batches:
            times = interleaved(calls(mode, batch), rounds, seconds)
            base = {"op": "ct", "family": "ParallelBeamCT", "shape": f"{batch}x1x512x512", "batch": batch, "mode": mode}
            base |= {"precision": "fp32", "flop": "", "bytes": "", "roofline_fraction": ""} | where
            for provider, measured in times.items():
                per_image = spread([t / batch for t in measured])
                peak = _peak(mode, batch, threads) if provider == "ours" else ""
                own_error = wrong if provider == "ours" else ""
                config = json.dumps({"rounds": len(measured), "bins": 400 if provider == "ours" else 725})
                common = base | {"backend": "cpu" if provider == "ours" else "torch", "provider": provider}
                common |= {"rel_err": own_error, "config_json": config}
                rows.append(
                    Measurement(
                        **common, metric="time", unit="s/image", p50=per_image.p50, p20=per_image.p20, p80=per_image.p80
                    )
                )
                if peak != "":
                    rows.append(Measurement(**common, metric="memory", unit="MB", p50=peak, p20="", p80=""))
                print(
                    LAYOUT.format(
                        mode, batch, provider, f"{per_image.p50:.4f}", f"{per_image.p20:.4f}..{per_image.p80:.4f}",
                        "" if peak == "" else f"{peak:.0f}", "" if own_error == "" else f"{own_error:.1e}",
                        _verdict(mode, per_image.p50, peak) if provider == "ours" else "",
                    ).rstrip()
                )  # fmt: skip
            if "deepinv" in times:
                r = ratios(times["deepinv"], times["ours"])
                print(f"{'':17}deepinv / ours: {r.p50:.1f}x [{r.p20:.1f}..{r.p80:.1f}]")
                rows.append(
                    Measurement(
                        **base, backend="cpu", provider="deepinv/ours", metric="ratio", unit="x", rel_err="",
                        p50=r.p50, p20=r.p20, p80=r.p80, config_json=json.dumps({"rounds": len(times["ours"])}),
                    )
                )  # fmt: skip
    return rows


def _verdict(mode: str, seconds: float, peak) -> str:
    if mode not in GOALS:
        return ""
    met = seconds <= GOALS[mode] and (peak == "" or peak < MEMORY_GOAL)
    return f"goal {GOALS[mode]:g} s, {MEMORY_GOAL:.0f} MB: {'met' if met else 'MISSED'}"


def _peak(mode: str, batch: int, threads: int) -> float | str:
    """Peak memory of one warm call above what was resident before, in MB, in a process of its own."""
    if not Path("/proc/self/clear_refs").exists():
        return ""
    command = [sys.executable, "-m", "bench.physics", "peak", mode, str(batch), str(threads)]
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD)}
    child = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    return float(child.stdout)


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.physics", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    ct = commands.add_parser("ct", help="tomography at the published geometry")
    ct.add_argument("--batch", type=int, nargs="+", default=[8, 1], help="images per call (default: 8 1)")
    ct.add_argument("--rounds", type=int, default=15, help="at most so many measurements (default: %(default)s)")
    ct.add_argument("--seconds", type=float, default=20.0, help="per line of the table (default: %(default)s)")
    ct.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    ct.add_argument("--output", type=Path, help="the CSV (default: bench/results/physics_ct_<isa>_<threads>t.csv)")
    peak = commands.add_parser("peak", help="peak memory of one call, for the run above")
    peak.add_argument("mode", choices=MODES)
    peak.add_argument("batch", type=int)
    peak.add_argument("threads", type=int)
    options = parser.parse_args(arguments)
    if options.command == "peak":
        torch.set_num_threads(options.threads)
        print(peak_megabytes(calls(options.mode, options.batch)["ours"]))
        return 0
    rows = run_ct(options.batch, options.rounds, options.seconds, options.threads)
    results = Path(__file__).resolve().parent / "results"
    path = options.output or results / f"physics_ct_{isa()}_{options.threads}t.csv"
    write(path, rows)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
