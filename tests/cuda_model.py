"""The CUDA kernels of dense networks on the CPU model of the machine (kernels/cuda/model), on plain tensors.

`build` compiles the kernel sources with the C++ compiler, once per content; `Model` runs them on float32 tensors.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lpn_fast.algebra.parameters import layout, parameter_count
from lpn_fast.algebra.spec import Spec

SOURCES = Path(__file__).resolve().parents[1] / "kernels" / "cuda"
UNITS = ("model/mlp_model.cpp", "model/simt_model.cpp", "mlp_plan.cpp")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
OPERATIONS = ("prox", "hvp", "vjp", "solve")
COMPILER = shutil.which("c++") or shutil.which("g++")

# an H200: processors, shared memory of a block and of a processor in bytes
H200 = (132, 232448, 233472)
# one that is so small that a few hundred rows fill it, with the same memory
SMALL = (1, 232448, 233472)


def build(sources: Path = SOURCES, *options: str) -> ctypes.CDLL:
    """The model as a library, from `sources` or a changed copy of them."""
    options = options or ("-O1",)
    digest = hashlib.sha256(" ".join(options).encode())
    for path in sorted(sources.rglob("*")):
        if path.suffix in (".h", ".cpp"):
            digest.update(path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"lpn_fast_cuda_model_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{digest.hexdigest()[:20]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / "model.so"
            command = [COMPILER, "-std=c++17", *options, "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
            command += ["-shared", "-fPIC", "-o", str(made), *(str(sources / unit) for unit in UNITS)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            os.replace(made, library)
    library = ctypes.CDLL(str(library))
    library.model_error.restype = ctypes.c_char_p
    return library


def table(spec: Spec) -> Tensor:
    """P's layout as the kernels take it, int64 [6 stages + 2]."""
    offsets = {slot.name: slot.offset for slot in layout(spec)}
    entries = []
    for index, stage in enumerate(spec.stages):
        names = ("core", "skip", "bias", "head", "head_squared")
        entries += [stage.width, *(offsets.get(f"stages.{index}.{name}", -1) for name in names)]
    return torch.tensor([*entries, offsets.get("linear", -1), offsets.get("constant", -1)])


@dataclass
class Model:
    """One network on the model. Outputs are filled with NaN before each run: what is not written shows."""

    library: ctypes.CDLL
    spec: Spec
    packed: Tensor  # P, float32
    device: tuple[int, int, int] = SMALL
    backward_order: bool = False

    def prox(self, x: Tensor, precision: str, value: bool = True) -> tuple[Tensor | None, Tensor]:
        """(psi or None, f)"""
        psi, f = unwritten(len(x)) if value else None, unwritten(*x.shape)
        self._run("prox", precision, x, psi=psi, f=f)
        return psi, f

    def hvp(self, x: Tensor, v: Tensor, precision: str) -> tuple[Tensor, Tensor, Tensor]:
        """(psi, f, H v)"""
        psi, f, hv = unwritten(len(x)), unwritten(*x.shape), unwritten(*x.shape)
        self._run("hvp", precision, x, v=v, psi=psi, f=f, hv=hv)
        return psi, f, hv

    def vjp(self, x: Tensor, p: Tensor | None, v: Tensor | None, precision: str) -> tuple[Tensor, Tensor]:
        """(gx, gP)"""
        gx, gP = unwritten(*x.shape), unwritten(len(self.packed))
        self._run("vjp", precision, x, p=p, v=v, hv=gx, gP=gP)
        return gx, gP

    def solve(self, z, start, strength, tol, radius=float("inf"), max_iter=100) -> dict[str, Tensor]:
        """t u + (1 - t) f(u) = z; the fields of ops.solve.EquationSolution."""
        rows = len(z)
        u, f, psi = unwritten(*z.shape), unwritten(*z.shape), unwritten(rows)
        residual = unwritten(rows).double()
        iterations, verdict = torch.full((2, rows), -7)
        offsets, spec = table(self.spec), self.spec
        outputs = (u, f, psi, residual, iterations, verdict)
        self._check(
            self.library.model_solve(
                _at(offsets), _long(spec.channels), _long(len(spec.stages)), _long(len(self.packed)),
                ctypes.c_double(spec.beta), ctypes.c_double(spec.alpha), (ctypes.c_int64 * 3)(*self.device),
                int(self.backward_order), *map(_at, (self.packed, z, start, strength, *outputs)), _long(rows),
                ctypes.c_double(tol), ctypes.c_double(radius), _long(max_iter),
            )
        )  # fmt: skip
        return dict(zip(("u", "f", "psi", "residual", "iterations", "verdict"), outputs, strict=True))

    def plan(self, operation: str, precision: str, rows: int) -> dict[str, int]:
        """How the call would be laid over the device."""
        names = ("row_tiles", "column_tiles", "team", "tiles", "resident", "spilled", "warps", "blocks")
        names += ("shared", "packed", "partial", "spilled_bytes")
        values = (ctypes.c_int64 * len(names))()
        offsets, spec = table(self.spec), self.spec
        self._check(
            self.library.model_plan(
                _at(offsets), _long(spec.channels), _long(len(spec.stages)), _long(parameter_count(spec)),
                PRECISIONS.index(precision), OPERATIONS.index(operation), _long(rows),
                (ctypes.c_int64 * 3)(*self.device), values,
            )
        )  # fmt: skip
        return dict(zip(names, values, strict=True))

    def _run(self, operation, precision, x, v=None, p=None, psi=None, f=None, hv=None, gP=None):
        offsets, spec = table(self.spec), self.spec
        self._check(
            self.library.model_run(
                _at(offsets), _long(spec.channels), _long(len(spec.stages)), _long(len(self.packed)),
                ctypes.c_double(spec.beta), ctypes.c_double(spec.alpha), PRECISIONS.index(precision),
                OPERATIONS.index(operation), (ctypes.c_int64 * 3)(*self.device), int(self.backward_order),
                *map(_at, (self.packed, x, v, p, psi, f, hv, gP)), _long(len(x)),
            )
        )  # fmt: skip

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(self.library.model_error().decode())


def unwritten(*shape: int) -> Tensor:
    """NaN everywhere."""
    return torch.full(shape, torch.nan)


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(0 if tensor is None else tensor.data_ptr())


def _long(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)
