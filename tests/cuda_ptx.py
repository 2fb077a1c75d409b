"""nvcc's PTX of the CUDA kernels of dense networks, launched on the model of a block as mlp_launch.cu launches them."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cuda_model
import ptx_model
import torch
from cuda_model import SMALL, SOURCES, Model, unwritten
from ptx_memory import Memory
from torch import Tensor

from lpn_fast.algebra.parameters import parameter_count
from lpn_fast.ops.packing import parameter_table

NVCC = shutil.which("nvcc")
NUMBERS = {"fp32": "Fp32", "tf32": "Tf32", "fp16": "Fp16", "bf16": "Bf16"}
# by Plan: a known width with its weights in shared memory, or any width with weights through the caches
NARROWEST = "KnownWidth<{number}, 0>"
STREAMED = "Config<{number}, streamed_shape.row_tiles, streamed_shape.column_tiles, false, streamed_shape.team>"
SOLVER = "Config<{number}, solver_shape.row_tiles, solver_shape.column_tiles, true, solver_shape.team>"


def compiled(precision: str, *kernels: tuple[str, str]) -> str:
    """PTX of pack_kernel, and of (operation, configuration) each; compiled once per content of the sources."""
    number = NUMBERS[precision]
    unit = '#include "mlp_kernels.h"\nnamespace lpn {\nnamespace {\n'
    unit += f"template __global__ void pack_kernel<{number}>(const __grid_constant__ PackCall);\n"
    for operation, configuration in kernels:
        one = configuration.format(number=number)
        if operation == "solve":
            unit += f"template __global__ void solve_kernel<{one}>(const __grid_constant__ SolveCall);\n"
        else:
            one = f"mlp_kernel<{one}, Operation::{operation}>"
            unit += f"template __global__ void {one}(const __grid_constant__ MlpCall);\n"
    return _ptx(unit + "}\n}\n")


def sums() -> str:
    """PTX of sum_kernel."""
    return _ptx('#include "mlp_launch.cu"\n')


def _ptx(unit: str) -> str:
    digest = hashlib.sha256(unit.encode() + subprocess.run([NVCC, "--version"], capture_output=True).stdout)
    for path in sorted(SOURCES.glob("*.h")) + [SOURCES / "mlp_launch.cu"]:
        digest.update(path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"lpn_fast_cuda_ptx_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    kept = folder / f"{digest.hexdigest()[:20]}.ptx"
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            source, made = Path(scratch, "unit.cu"), Path(scratch, "unit.ptx")
            source.write_text(unit)
            command = [NVCC, "-std=c++17", "-O3", "-arch=compute_80", "-ptx", f"-I{SOURCES}", str(source)]
            done = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            os.replace(made, kept)
    return kept.read_text()


# ---- mlp.h, mlp_pack.h and mlp_vjp.h as ctypes have them; the model refuses structs of another size than PTX has


def _struct(name: str, *fields: tuple[str, object]) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": fields})


_int, _long, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64
Stage = _struct("Stage", *((name, _int) for name in ("width", "core", "skip", "bias", "head", "head_sq")))
Problem = _struct(
    "Problem", ("stages", Stage * 32),
    *((name, _int) for name in ("stage_count", "dim", "linear", "constant", "parameter_count", "widest", "tiles")),
    ("dim_tiles", _int), ("beta", ctypes.c_float), ("alpha", ctypes.c_float),
)  # fmt: skip
PackCall = _struct(
    "PackCall", ("problem", Problem), ("parameters", _pointer), ("packed", _pointer), ("both", _int)
)  # fmt: skip
POINTERS = ("parameters", "packed", "x", "v", "p", "psi", "f", "hv", "partial", "spilled")
MlpCall = _struct("MlpCall", ("problem", Problem), *((name, _pointer) for name in POINTERS), ("rows", _long))
SolveCall = _struct(
    "SolveCall", ("mlp", MlpCall), *((name, _pointer) for name in ("residual", "iterations", "verdict")),
    ("tol", ctypes.c_double), ("radius", ctypes.c_double), ("max_iter", _int),
)  # fmt: skip
SumCall = _struct("SumCall", ("partial", _pointer), ("total", _pointer), ("blocks", _int), ("count", _int))


@dataclass
class Compiled(Model):
    """One network on compiled PTX; `library` is asked for plans only. Workspaces start as NaN."""

    ptx: str = ""
    device: tuple[int, int, int] = SMALL

    def _run(self, operation, precision, x, v=None, p=None, psi=None, f=None, hv=None, gP=None):
        plan = self.plan(operation, precision, len(x))
        partial = unwritten(plan["blocks"], len(self.packed)) if gP is not None else None
        given = {"x": x, "v": v, "p": p, "psi": psi, "f": f, "hv": hv, "partial": partial}
        memory, call = self._packed(plan, given, len(x))
        self._launch("mlp_kernel", rf"EEELNS_9OperationE{cuda_model.OPERATIONS.index(operation)}E", plan, call, memory)
        if gP is None:
            return
        count = len(self.packed)
        total = SumCall(memory.address_of(partial), memory.address_of(gP), plan["blocks"], count)
        ptx_model.launch(sums(), 0, 8, (-(-count // 256),), [bytes(total)], "sum_kernel", memory)

    def solve(self, z, start, strength, tol, radius=float("inf"), max_iter=100) -> dict[str, Tensor]:
        rows = len(z)
        u, f, psi = unwritten(*z.shape), unwritten(*z.shape), unwritten(rows)
        residual = unwritten(rows).double()
        iterations, verdict = torch.full((2, rows), -7)
        plan = self.plan("solve", "fp32", rows)
        given = {"x": z, "v": start, "p": strength, "psi": psi, "f": f, "hv": u}
        memory, call = self._packed(plan, given, rows)
        ends = (memory.address_of(t) for t in (residual, iterations, verdict))
        self._launch("solve_kernel", "", plan, SolveCall(call, *ends, tol, radius, max_iter), memory)
        outputs = (u, f, psi, residual, iterations, verdict)
        return dict(zip(("u", "f", "psi", "residual", "iterations", "verdict"), outputs, strict=True))

    def _packed(self, plan, given: dict[str, Tensor | None], rows: int):
        """(memory, the call), after its weights were packed."""
        problem = self._problem(plan)
        sizes = {"packed": plan["packed"], "spilled": plan["spilled_bytes"]}
        # not to end where anything begins: an allocation of its own each
        spaces = {name: torch.full((size,), 255, dtype=torch.uint8) if size else None for name, size in sizes.items()}
        memory = Memory()
        places = given | spaces | {"parameters": self.packed}
        addresses = {name: memory.address_of(tensor) for name, tensor in places.items()}
        self._kept = places  # as long as memory refers to it
        pack = PackCall(problem, addresses["parameters"], addresses["packed"], not plan["resident"])
        ptx_model.launch(self.ptx, 0, 8, (problem.stage_count,), [bytes(pack)], "pack_kernel", memory)
        return memory, MlpCall(problem, *(addresses.get(name, 0) for name in POINTERS), rows)

    def _launch(self, kernel: str, ending: str, plan, call: ctypes.Structure, memory: Memory) -> None:
        """As kernel_of of mlp_kernels.h chooses: solvers, and weights through the caches, know no width."""
        tiles = plan["tiles"] if plan["resident"] and kernel != "solve_kernel" else 0
        shape = plan["row_tiles"], plan["column_tiles"], plan["resident"], plan["team"], tiles
        entry = kernel + r"\w*Li{}ELi{}ELb{}ELi{}ELi{}".format(*shape) + ending
        blocks = (plan["blocks"],)
        self.kernel = ptx_model.launch(self.ptx, plan["shared"], plan["warps"], blocks, [bytes(call)], entry, memory)

    def _problem(self, plan) -> Problem:
        """As make_problem of mlp_plan.cpp."""
        spec, table = self.spec, parameter_table(self.spec).tolist()
        count = len(spec.stages)
        stages = (Stage * 32)(*(Stage(*table[6 * l : 6 * l + 6]) for l in range(count)))
        widest = max(stage.width for stage in stages)
        ends = (table[6 * count], table[6 * count + 1], parameter_count(spec), widest, plan["tiles"])
        dim_tiles = 2 * -(-spec.channels // 16)
        return Problem(stages, count, spec.channels, *ends, dim_tiles, spec.beta, spec.alpha)
