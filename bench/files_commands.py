"""The files of real life through the commands: `train --validate`, `denoise`, `reconstruct` and `prior`, as folders.

What each file becomes is compared with what the same network makes of the values that the script put in; a file that
must be refused has to be listed as failed for the reason given, and keeps no other from being done.
"""

import contextlib
import csv
import io
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import lpn_fast as lf
from lpn_fast import cli
from lpn_fast.data import ImageStore, find_items
from lpn_fast.io import read_image, write_image
from lpn_fast.pipeline import Denoise, Reconstruct, Score, problems
from lpn_fast.pipeline.manifest import read_results

from .real_files import CASES, Case, padded

SIGMA, NOISE, BLUR, CROP = 0.05, 0.03, 1.0, 16
HALF = 0.51  # levels by which stored results may be off
VALUE_ERROR = 1e-7  # relative, for values of a prior
Verdict = tuple[bool, str]  # whether that is right, what to show of it

TASKS = {
    "denoise": (Denoise(SIGMA), ["--sigma", SIGMA]),
    "reconstruct": (
        Reconstruct(problems.blur(lf.physics.Blur.gaussian(BLUR)), NOISE, solver="pgd", iterations=3),
        ["--blur-sigma", BLUR, "--boundary", "circular", "--noise", NOISE, "--iterations", 3],
    ),
    "prior": (Score(SIGMA), ["--sigma", SIGMA]),
}


def through_commands(scratch: Path, read: Callable[[Path, Case], np.ndarray]) -> dict[str, dict[str, Verdict]]:
    """By command, by file: files with and without intensities are folders of their own.

    Parameters
    ----------
    scratch : Path
        An empty folder.
    read : callable
        The images (N, C, H, W) of a result.
    """
    torch.manual_seed(0)
    model = lf.ConvLPN(1, hidden=4, strides=(1, 2), sigma_conditional=True, alpha=0.1).eval()
    weights = lf.save(model, scratch / "model.safetensors")
    verdicts: dict[str, dict[str, Verdict]] = {command: {} for command in ("train", *TASKS)}
    for number, intensities in enumerate(dict.fromkeys(case.intensities for case in CASES)):
        cases = [case for case in CASES if case.intensities == intensities]
        folder, options = scratch / str(number) / "images", []
        folder.mkdir(parents=True)
        for case in cases:
            case.write(folder)
        if intensities is not None:
            options = ["--intensities", *intensities]
        verdicts["train"] |= _trained(cases, folder, options)
        for command, (task, own) in TASKS.items():
            out = folder.parent / (command + ".csv" * (command == "prior"))
            _run(command, folder, "-o", out, "--model", weights, "--batch-pixels", 10**5, *own, *options)
            verdicts[command] |= dict(_judged(command, task, cases, model, folder, out, read))
    return verdicts


def _run(*arguments: object) -> tuple[int, str]:
    """(exit code, what was printed) of a command."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(out),
        warnings.catch_warnings(record=True) as warned,
    ):
        warnings.simplefilter("always")
        code = cli.main([str(argument) for argument in arguments])
    return code, "\n".join([out.getvalue(), *(str(warning.message) for warning in warned)])


def _judged(
    command: str, task, cases: list[Case], model, folder: Path, out: Path, read
) -> Iterator[tuple[str, Verdict]]:
    results = read_results(out.with_name(f"{out.name}.job") if command == "prior" else out)
    values: dict[str, list[float]] = {}
    if command == "prior":
        with open(out, newline="") as file:
            for row in csv.DictReader(file):
                item = Path(row["image"].partition("::")[0]).name
                values.setdefault(item, []).append(float(row["value"]))
    for case in cases:
        own = [result for item, result in results.items() if item.partition("::")[0] == case.name]
        if isinstance(case.expected, str):
            refused = len(own) == 1 and own[0].status == "failed" and re.search(case.expected, own[0].error)
            yield case.name, (bool(refused), "refused" if refused else "NOT SO")
            continue
        if len(own) != len(case.expected) or any(result.status != "done" for result in own):
            yield case.name, (False, "FAILED")
            continue
        planes = torch.from_numpy(case.expected.reshape(-1, 1, *case.expected.shape[2:])).float()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # noise is no picture, and three iterations are few
            solution = task.solve(planes, model)
        if command == "prior":
            wanted = solution.value.reshape(case.expected.shape[:2]).sum(1).numpy()
            error = float(np.abs(np.array(values.get(case.name, [])) / wanted - 1).max())
            yield case.name, (error <= VALUE_ERROR + 10 * case.rounding, f"{error:.0e}")
        else:
            wanted = solution.x.reshape(case.expected.shape).numpy()
            if case.lost:  # what the format itself makes of it
                path = write_image(
                    out.parent / case.name, torch.from_numpy(wanted[0]), read_image(folder / case.name).encoding
                )
                wanted = read(path, case)
            inside = (wanted > 0) & (wanted < 1)  # beyond which most types clip
            if case.name == "padded.dcm":
                inside &= padded() != -2000  # where padding is put back
            error = float(np.abs(read(out / case.name, case) - wanted)[inside].max())
            yield case.name, (error <= HALF / _levels(case.expected) + case.rounding, f"{error:.0e}")


def _levels(values: np.ndarray) -> int:
    """Steps between 0 and 1 of the type that they are stored in: of 8 bits, or 12 and more."""
    return 255 if np.abs(255 * values - np.rint(255 * values)).max() < 1e-3 else 4095


def _trained(cases: list[Case], folder: Path, options: list) -> dict[str, Verdict]:
    """What a step of training and its validation took their crops from, as it went into their stores."""
    stores: list[ImageStore] = []

    def kept(*arguments, **options) -> ImageStore:
        stores.append(ImageStore(*arguments, **options))
        return stores[-1]

    made = ["--out", folder.parent / "run", "--sigma", 0.1, "--steps", 1, "--hidden", 2, "--batch-size", 1]
    made += ["--no-verify", "--channels", 3, "--crop", CROP, "--validate-side", CROP, *options]
    with mock.patch("lpn_fast.data.images.ImageStore", kept):
        code, said = _run("train", "--data", folder, "--validate", folder, "--skip-broken", *made)
    refused = [case for case in cases if isinstance(case.expected, str)]
    if code or len(stores) != 2 or (refused and f"{len(refused)} samples left out" not in said):
        return {case.name: (False, f"EXIT {code}") for case in cases}
    verdicts = {}
    for case in refused:  # by itself, since only the first of many are named
        code, said = _run("train", "--data", folder / case.name, "--validate", folder / case.name, *made)
        holds = code == 2 and re.search(case.expected, said) is not None
        verdicts[case.name] = holds, "refused" if holds else "NOT SO"
    names = [item.name.removeprefix(f"{folder}/").partition(":")[0] for item in find_items([folder])]
    names = [name for name in names if name not in {case.name for case in refused}]
    for case in cases:
        if case not in refused:
            numbers = [number for number, name in enumerate(names) if name == case.name]
            seen = [store.image(number).numpy() for store in stores for number in numbers]
            wanted = np.broadcast_to(case.expected, (len(case.expected), 3, *case.expected.shape[2:]))
            top, left = ((side - CROP) // 2 for side in case.expected.shape[2:])
            inner = wanted[:, :, top : top + CROP, left : left + CROP]
            error = max(float(np.abs(a - b).max()) for a, b in zip(seen, [*wanted, *inner], strict=True))
            verdicts[case.name] = error <= case.rounding, f"{error:.0e}"
    return verdicts
