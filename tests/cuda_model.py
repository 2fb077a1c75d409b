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

from lpn_fast.algebra.parameters import parameter_count
from lpn_fast.algebra.spec import Spec
from lpn_fast.ops.packing import parameter_table

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


@dataclass
class Network:
    """The model's entry points for one network, by address as the compiled module takes them."""

    library: ctypes.CDLL
    table: ctypes.c_void_p  # P's layout, ops/packing.parameter_table
    dim: int
    stages: int
    parameter_count: int
    beta: float
    alpha: float

    def plan(self, operation: str, precision: str, rows: int, limits: tuple[int, int, int]) -> dict[str, int]:
        """How a call would be laid over a device."""
        names = ("row_tiles", "column_tiles", "team", "tiles", "resident", "spilled", "warps", "blocks")
        names += ("shared", "packed", "partial", "spilled_bytes")
        values = (ctypes.c_int64 * len(names))()
        if self.library.model_plan(*self._shape(), *_call(operation, precision), _long(rows), _three(limits), values):
            raise ValueError(self.library.model_error().decode())  # as pybind makes it of std::invalid_argument
        return dict(zip(names, values, strict=True))

    def run(self, operation, precision, limits, backward_order, pointers, rows) -> None:
        """prox, hvp or vjp; `pointers` of P, x, v, p, psi, f, hv and gP."""
        call = (*_call(operation, precision), _three(limits), int(backward_order))
        self._check(self.library.model_run(*self._shape(), *self._curve(), *call, *pointers, _long(rows)))

    def solve(self, limits, backward_order, pointers, rows, tol, radius, max_iter) -> None:
        """The equation of ops/solve; `pointers` of P, z, start, strength and the six results."""
        ends = (_long(rows), ctypes.c_double(tol), ctypes.c_double(radius), _long(max_iter))
        where = (_three(limits), int(backward_order))
        self._check(self.library.model_solve(*self._shape(), *self._curve(), *where, *pointers, *ends))

    def _shape(self):
        return self.table, *map(_long, (self.dim, self.stages, self.parameter_count))

    def _curve(self):
        return ctypes.c_double(self.beta), ctypes.c_double(self.alpha)

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(self.library.model_error().decode())


@dataclass
class Model:
    """One network on the model. Outputs are filled with NaN before each run: what is not written shows."""

    library: ctypes.CDLL
    spec: Spec
    packed: Tensor  # P, float32
    device: tuple[int, int, int] = SMALL
    backward_order: bool = False

    def __post_init__(self):
        spec, self._table = self.spec, parameter_table(self.spec)
        sizes = (spec.channels, len(spec.stages), parameter_count(spec))
        self._network = Network(self.library, _at(self._table), *sizes, spec.beta, spec.alpha)

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
        outputs = (u, f, psi, residual, iterations, verdict)
        pointers = map(_at, (self.packed, z, start, strength, *outputs))
        self._network.solve(self.device, self.backward_order, pointers, rows, tol, radius, max_iter)
        return dict(zip(("u", "f", "psi", "residual", "iterations", "verdict"), outputs, strict=True))

    def plan(self, operation: str, precision: str, rows: int) -> dict[str, int]:
        """How the call would be laid over the device."""
        return self._network.plan(operation, precision, rows, self.device)

    def _run(self, operation, precision, x, v=None, p=None, psi=None, f=None, hv=None, gP=None):
        pointers = map(_at, (self.packed, x, v, p, psi, f, hv, gP))
        self._network.run(operation, precision, self.device, self.backward_order, pointers, len(x))


def unwritten(*shape: int) -> Tensor:
    """NaN everywhere."""
    return torch.full(shape, torch.nan)


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(0 if tensor is None else tensor.data_ptr())


def _long(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


def _three(limits: tuple[int, int, int]) -> ctypes.Array:
    return (ctypes.c_int64 * 3)(*limits)


def _call(operation: str, precision: str) -> tuple[int, int]:
    return PRECISIONS.index(precision), OPERATIONS.index(operation)
