"""What the compilers made of the kernels: registers, spills, shared memory, tensor-core code. Needs no device.

cuda      the reports of ptxas that the build left behind, kernel by kernel
triton    every row of the launch table, and the kernels of whole frames, mixtures and explicit priors, compiled by the
          Triton that is here, for the device's architecture
"""

import functools
import os
import re
from pathlib import Path

import torch

from .session import Session, run_part

ENTRY = re.compile(
    r"Compiling entry function '(\w+)' for '(sm_\w+)'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)


def kernels(text: str) -> dict[tuple[str, str], tuple[int, ...]]:
    """(name, architecture) -> stack, spill stores, spill loads, registers; from what `ptxas -v` wrote."""
    return {(m[1], m[2]): tuple(map(int, m.groups()[2:])) for m in ENTRY.finditer(text)}


def measure(session: Session) -> None:
    _cuda(session)
    _triton(session)


def _cuda(session: Session) -> None:
    root = os.environ.get("LPN_FAST_SOURCE", Path(__file__).parents[2])
    reports = sorted(Path(root).glob("build/*/cuda_resources/*.txt"))
    if not reports:
        session.show("---- cuda: no report of a build, so no CUDA module was built here")
    for path in reports:
        found = kernels(path.read_text())
        if not found:
            continue
        spilled = [name for name, (*spills, _) in found.items() if any(spills)]
        registers = sorted(numbers[-1] for numbers in found.values())
        detail = f"{len(found)} kernels, {registers[0]} to {registers[-1]} registers"
        session.check(
            f"cuda {path.name.split('.')[0]}", not spilled, detail + "".join(f", spills: {n}" for n in spilled)
        )


def _triton(session: Session) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        session.show("---- triton: the compiler is off under the interpreter")
        return
    try:
        from lpn_fast.kernels.triton import launch
        from lpn_fast.kernels.triton.ahead import fused_kernels, launches, report, small_kernels
    except ImportError as reason:
        session.show(f"---- triton: {reason}")
        return
    arch = 90
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        arch = 10 * major + minor
    try:
        for name, found in small_kernels(arch).items():
            session.check(f"triton {name}", not found.spilled_bytes, str(found))
    except Exception as failure:
        session.check("triton's small kernels", False, f"{type(failure).__name__}: {failure}".splitlines()[0][:160])
    fused = fused_kernels(arch)
    mirrored = {name: fused.pop(name) for name in list(fused) if name.startswith("mirrored")}
    compilations = dict(fused)
    for key, config, projects, form in launches(arch, ("fp16", "tf32", "fp32")):
        name = f"{key.role} {key.c_in} {key.c_out} {key.precision}" + " projected" * projects
        compilations[name] = functools.partial(report, key, config, projects, form)
    compilations |= mirrored  # last: no shipped model has that border
    for name, compilation in compilations.items():
        if session.seconds_left < 0:
            session.show("---- triton: no time left for the rest of the table")
            return
        name = f"triton {name}"
        try:
            found = compilation()
        except Exception as failure:
            session.check(name, False, f"{type(failure).__name__}: {failure}".splitlines()[0][:160])
            continue
        shared = launch.SHARED_BYTES.get(arch, min(launch.SHARED_BYTES.values()))
        ok = not (found.spilled_bytes or found.hazards) and found.shared_bytes <= shared and found.tensor_core > 0
        session.check(name, ok, str(found))


if __name__ == "__main__":
    raise SystemExit(run_part(__name__, __doc__, measure, needs_device=False))
