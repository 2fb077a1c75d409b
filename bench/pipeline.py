"""`python -m bench.pipeline`: what a batch job costs beside the network, and that its memory does not grow.

    python -m bench.pipeline overhead       wall time of a job against the network alone on the same batches
    python -m bench.pipeline memory         peak of jobs of 100 and of 1,000 images, each in a fresh process
    python -m bench.pipeline overhead --against CHECKOUT      beside another version of the package, in turns

overhead: 8-bit gray PNG files of 512 x 512 pixels, the shipped model. A round times, in turns,
    job            `reconstruct` as users call it: read, solve, write, force to disk, record, start and end included
    one by one     the solver alone, nothing read or written, batch after batch, each by all threads
    side by side   the same, as many batches at once as there are threads, each by one of them
and overhead = 1 - (the faster of the two, in this round) / job. Deblurring runs a fifth of the iterations that
`lpn-fast reconstruct` allows by default; denoising is one network evaluation per image, the least work there is to
hide the rest behind. Goal: 10 %.

--against: both versions in a process of their own (pipeline_worker.py), in turns, with one thread for the network. What
is compared is processor time, of all threads, which a loaded machine changes little: that of a command less that of the
network for the same images. Goal: not above the other version's.

memory: the resident set while the job runs, no allocator settings. Goal: the peak of ten times as many images is at
most 5 % higher. Writes bench/results/pipeline_<what>_<isa>_<threads>t.csv.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import lpn_fast as lf
from lpn_fast.benchmark.surroundings import isa, surroundings
from lpn_fast.benchmark.timing import Spread, interleaved, ratios, spread
from lpn_fast.data.synthetic import synthetic_images
from lpn_fast.physics import Blur
from lpn_fast.pipeline import Denoise, Encoding, Reconstruct, problems, read_image, reconstruct, write_image
from lpn_fast.pipeline.batches import BATCH_PIXELS, bucketed, to_samples
from lpn_fast.pipeline.flow import Solvers

from .against import HERE, ask, start
from .report import Measurement, write

SIDE, SIGMA = 512, 0.05
TASKS = {  # and the share of the images that is enough to time it
    "deblur": (
        Reconstruct(problems.blur(Blur.gaussian(1.6)), noise=0.03, solver="pgd", iterations=20, tol=0.0),
        1 / 16,
    ),
    "denoise": (Denoise(SIGMA), 1),
}
ONE_BY_ONE, SIDE_BY_SIDE = "solver, one by one", "solver, side by side"
OVERHEAD = "1 - fastest solver/job"
OVERHEAD_GOAL, GROWTH_GOAL = 10.0, 5.0  # %
MEMORY_COUNTS = (100, 1000)
SMALL_SIDE = 256  # many images matter, not large ones


def photographs(folder: Path, count: int, side: int, distinct: int = 8) -> Path:
    """`count` noisy 8-bit gray PNG files, `distinct` different ones (the others are links)."""
    folder.mkdir(parents=True)
    clean = torch.from_numpy(synthetic_images("dead-leaves", min(count, distinct), side))
    noisy = clean + SIGMA * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    for number in range(count):
        path = folder / f"{number:05d}.png"
        if number < len(noisy):
            write_image(path, noisy[number], Encoding(".png", "uint8"))
        else:
            os.link(folder / f"{number % len(noisy):05d}.png", path)
    return folder


def overhead(count: int, rounds: int, seconds: float, threads: int) -> list[Measurement]:
    """Measure every task, print, and return the rows."""
    torch.set_num_threads(threads)
    model, where, rows = lf.pretrained("frame-gray"), surroundings(threads), []
    print(f"{where['device']}, {threads} threads, torch {where['torch']}, commit {where['commit']}")
    for name, (task, share) in TASKS.items():
        rows += _overhead(name, task, model, max(1, int(share * count)), rounds, seconds / len(TASKS), where)
    return rows


def _overhead(name, task, model, count: int, rounds: int, seconds: float, where: dict) -> list[Measurement]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = photographs(Path(scratch) / "images", count, SIDE)
        samples = [to_samples(read_image(path).pixels, 1) for path in sorted(folder.iterdir())]
        batches = [torch.cat(batch) for batch in bucketed(samples, lambda s: s, BATCH_PIXELS)]
        out, solved = Path(scratch) / "out", []

        def job():
            shutil.rmtree(out, ignore_errors=True)
            reconstruct(folder, out, task=task, model=model, batch_pixels=BATCH_PIXELS)

        def alone(solvers: int):
            solved[:] = [None] * len(batches)

            def solve(number: int):
                solved[number] = task.solve(batches[number], model).x

            with Solvers(solvers) as team:
                for number in range(len(batches)):
                    team.submit(solve, number)

        calls = {"job": job, ONE_BY_ONE: lambda: alone(1), SIDE_BY_SIDE: lambda: alone(torch.get_num_threads())}
        times = interleaved(calls, rounds, seconds)
        results = torch.stack([read_image(path).pixels for path in sorted(out.glob("*.png"))])
    difference = float((results - torch.cat(solved).clamp(0, 1)).abs().max())  # half a level of 8 bits
    fastest = [min(pair) for pair in zip(times[ONE_BY_ONE], times[SIDE_BY_SIDE], strict=True)]
    share = spread([100 * (1 - s / j) for j, s in zip(times["job"], fastest, strict=True)])
    per_image = {what: spread([1e3 * t / count for t in times[what]]) for what in times}
    print(
        f"{name}: {', '.join(f'{what} {per_image[what].p50:.1f} ms' for what in per_image)} per image; "
        f"overhead {share.p50:.1f} % [{share.p20:.1f}..{share.p80:.1f}], goal {OVERHEAD_GOAL:g} %: "
        f"{'met' if share.p50 <= OVERHEAD_GOAL else 'MISSED'}; largest difference of a result {difference:.1e}"
    )
    config = json.dumps({"rounds": len(times["job"]), "images": count, "batch_pixels": BATCH_PIXELS})
    base = _base(name, SIDE, "overhead", where, config) | {"rel_err": difference}
    rows = [_row(base, what, "time", "ms/image", per_image[what]) for what in per_image]
    return [*rows, _row(base, OVERHEAD, "overhead", "%", share)]


def against(checkout: Path, count: int, rounds: int) -> list[Measurement]:
    """Measure both versions in turns, print, and return the rows."""
    versions = {"this": HERE, "other": checkout.resolve()}
    where, rows = surroundings(1), []
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        workers = {}
        for name, root in versions.items():
            images = photographs(Path(scratch) / name / "images", count, SMALL_SIDE)
            worker = Path(__file__).with_name("pipeline_worker.py")
            workers[name] = start(stack, root, worker, images, BATCH_PIXELS, 1)

        for task in ("denoise", "deblur", "prior"):
            seen: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
            for number in range(-1, rounds):  # the first one warms up
                for name in sorted(versions, reverse=number % 2 == 0):
                    found = ask(workers[name], task)
                    seen[name] += [found] if number >= 0 else []
            rows += _compared(task, seen, count, where)
    return rows


def _compared(task: str, seen: dict[str, list[dict[str, float]]], count: int, where: dict) -> list[Measurement]:
    beside = {name: [one["job"] - one["network"] for one in seen[name]] for name in seen}
    jobs = {name: [one["job"] for one in seen[name]] for name in seen}
    config = json.dumps({"rounds": len(beside["this"]), "images": count, "batch_pixels": BATCH_PIXELS})
    base = _base(task, SMALL_SIDE, "overhead", where, config) | {"rel_err": ""}

    def per_image(seconds: list[float]) -> Spread:
        return spread([1e3 * value / count for value in seconds])

    rows = [_row(base, f"{name}, job", "time", "ms/image", per_image(jobs[name])) for name in seen]
    rows += [_row(base, f"{name}, beside network", "overhead", "ms/image", per_image(beside[name])) for name in seen]
    job, rest = ratios(jobs["other"], jobs["this"]), ratios(beside["other"], beside["this"])
    rows += [_row(base, "other/this, job", "ratio", "", job), _row(base, "other/this, beside", "ratio", "", rest)]
    shown = ", ".join(f"{row.provider} {row.p50:.2f} {row.unit}".rstrip() for row in rows)
    print(f"{task}: {shown}; goal at least 1: {'met' if rest.p50 >= 1 else 'MISSED'}", flush=True)
    return rows


def memory(threads: int) -> list[Measurement]:
    """Measure, print, and return the rows."""
    where, rows, peaks = surroundings(threads), [], []
    with tempfile.TemporaryDirectory() as scratch:
        for count in MEMORY_COUNTS:
            folder = photographs(Path(scratch) / str(count), count, SMALL_SIDE)
            command = [sys.executable, "-m", "bench.pipeline", "peak", str(folder), str(threads)]
            root = Path(__file__).resolve().parents[1]
            plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
            child = subprocess.run(command, cwd=root, env=plain, capture_output=True, text=True, check=True)
            peaks.append(json.loads(child.stdout))
            print(f"{count:>5} images: {peaks[-1]['start']:.0f} MB before the job, peak {peaks[-1]['peak']:.0f} MB")
            config = json.dumps({"images": count, "before": peaks[-1]["start"]})
            base = _base("denoise", SMALL_SIDE, "memory", where, config) | {"rel_err": ""}
            rows.append(
                Measurement(**base, provider="job", metric="memory", unit="MB", p50=peaks[-1]["peak"], p20="", p80="")
            )
    growth = 100 * (peaks[-1]["peak"] / peaks[0]["peak"] - 1)
    met = "met" if growth <= GROWTH_GOAL else "MISSED"
    print(f"growth {growth:+.1f} %, goal {GROWTH_GOAL:g} %: {met}")
    return rows


def peak(folder: Path, threads: int) -> dict:
    """MB resident before and at the peak of a job, in this process; the network is small, the images are many."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = lf.ConvLPN(1, hidden=2).eval()
    model(torch.zeros(1, 1, SMALL_SIDE, SMALL_SIDE))
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    reconstruct(folder, folder.with_name(f"{folder.name}-out"), task=Denoise(SIGMA), model=model)
    return {"start": start, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _base(task: str, side: int, mode: str, where: dict, config: str) -> dict:
    fixed = {"op": f"pipeline {task}", "family": "frame-gray" if mode == "overhead" else "ConvLPN", "mode": mode}
    fixed |= {"shape": f"1x{side}x{side}", "batch": 1, "backend": "cpu", "precision": "fp32", "flop": "", "bytes": ""}
    return fixed | {"roofline_fraction": "", "config_json": config} | where


def _row(base: dict, provider: str, metric: str, unit: str, s) -> Measurement:
    return Measurement(**base, provider=provider, metric=metric, unit=unit, p50=s.p50, p20=s.p20, p80=s.p80)


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("overhead", "wall time beside the network"), ("memory", "peak against the number of images")):
        command = commands.add_parser(name, help=what)
        command.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
        command.add_argument("--output", type=Path, help="the CSV")
        if name == "overhead":
            command.add_argument("--images", type=int, default=128, help="default: %(default)s")
            command.add_argument("--rounds", type=int, default=9, help="at most (default: %(default)s)")
            command.add_argument("--seconds", type=float, default=90.0, help="in all (default: %(default)s)")
            command.add_argument("--against", type=Path, metavar="CHECKOUT", help="another version, built in place")
    child = commands.add_parser("peak", help="one job, for the run above")
    child.add_argument("folder", type=Path)
    child.add_argument("threads", type=int)
    options = parser.parse_args(arguments)
    if options.command == "peak":
        print(json.dumps(peak(options.folder, options.threads)))
        return 0
    if options.command == "overhead" and options.against is not None:
        rows = against(options.against, options.images, options.rounds)
    elif options.command == "overhead":
        rows = overhead(options.images, options.rounds, options.seconds, options.threads)
    else:
        rows = memory(options.threads)
    results = Path(__file__).resolve().parent / "results"
    what = "against" if getattr(options, "against", None) else options.command
    path = options.output or results / f"pipeline_{what}_{isa().replace(' ', '_')}_{options.threads}t.csv"
    write(path, rows)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
