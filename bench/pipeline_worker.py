"""One version of the package, timed by `python -m bench.pipeline overhead --against CHECKOUT`.

Started as a file, with the checkout that is meant on the path: it uses what versions have in common, the commands and
a few functions. For every line on its standard input, the name of a task, it does that job and the same work of the
network without files, and prints the seconds of processor time that each took, of all threads.
"""

import contextlib
import io
import json
import shutil
import sys
import time
import warnings
from pathlib import Path

import torch

import lpn_fast as lf
from lpn_fast import cli

SIGMA, NOISE, ITERATIONS = 0.05, 0.03, 3  # a few are enough to have a solver at work
BLUR = {"blur-sigma": 1.6, "boundary": "circular", "noise": NOISE, "iterations": ITERATIONS}
TASKS = {  # command, its options, the same of the network alone
    "denoise": (
        "denoise",
        {"sigma": SIGMA, "model": "frame-gray"},
        lambda model, y: model.prox_and_prior(y, sigma=SIGMA),
    ),
    "deblur": (
        "reconstruct",
        {**BLUR, "model": "fast-gray-deblur"},
        lambda model, y: lf.solvers.pgd(y, lf.physics.Blur.gaussian(1.6), model, noise=NOISE, max_iter=ITERATIONS),
    ),
    "prior": (
        "prior",
        {"sigma": SIGMA, "model": "frame-gray", "max-iter": ITERATIONS},
        lambda model, y: lf.prior(model, y, sigma=SIGMA, max_iter=ITERATIONS),
    ),
}


def processor_seconds(call) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def main(folder: Path, batch_pixels: int, threads: int) -> None:
    """Answer until standard input ends."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore", RuntimeWarning)  # solvers are stopped after a few iterations
    out = folder.parent / "out"
    y = torch.cat([lf.pipeline.read_image(path).pixels[None] for path in sorted(folder.iterdir())])  # (N, 1, H, W)
    batches = y.split(max(1, batch_pixels // y[0].numel()))
    for line in sys.stdin:
        command, options, alone = TASKS[line.strip()]
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        words += ["--threads", str(threads), "--batch-pixels", str(batch_pixels)]
        target = out / "scores.csv" if command == "prior" else out
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        with contextlib.redirect_stdout(io.StringIO()) as said:
            job = processor_seconds(lambda: cli.main([command, str(folder), "-o", str(target), *words]))  # noqa: B023
        if f"{len(y)} done" not in said.getvalue() and command != "prior":
            raise RuntimeError(f"{command} has not done its images: {said.getvalue()}")
        model = lf.pretrained(options["model"])
        with torch.no_grad():
            network = processor_seconds(lambda: [alone(model, batch) for batch in batches])  # noqa: B023
        print(json.dumps({"job": job, "network": network}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
