"""Versions, backends, shipped models.

Show versions, the CPU's instruction set, which backend runs and why the others do not, the CUDA module, and the
models that ship with the package; or everything that is known of one model. Nothing is changed or written.

examples:
  lpn-fast info
  lpn-fast info fast-gray                             what it was trained on, and what it reached
  lpn-fast info runs/gray/model.safetensors
  LPN_FAST_BACKEND=torch lpn-fast info
"""

import importlib
import json
import os
import platform
from collections.abc import Iterator

import torch

from .. import __version__
from ..networks import LPN, ConvLPN, explain, list_pretrained, pretrained
from ..ops import admission
from . import options


def add_arguments(parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a shipped model, or a file of lpn_fast.save")


def run(args) -> int:
    if args.model is None:
        sections = _installation()
    else:
        model = options.load_model(args.model)
        sections = {args.model: [_in_short(model), model.extra_repr(), *_entries(model.card)]}
    for title, lines in sections.items():
        print(title, *(f"  {line}" for line in lines), sep="\n")
    return 0


def _installation() -> dict[str, list[str]]:
    cpu, reason = _compiled("_cpu")
    setting = "" if admission.checks_are_on() else "; LPN_FAST_TUNE=off, so first calls check nothing"
    shipped = [f"{name}: {_in_short(pretrained(name))}" for name in list_pretrained()]
    return {
        "versions": [
            f"lpn_fast {__version__}",
            f"torch {torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} CPUs",
            f"Python {platform.python_version()} on {platform.system()} {platform.machine()}",
        ],
        "compiled CPU module": [f"instruction set {cpu.isa()}, available {', '.join(cpu.isas())}" if cpu else reason],
        "CUDA module": _cuda_module(),
        "GPU kernels checked on this machine": [
            *(admission.kept() or ["none"]),
            f"kept in {admission.folder()}{setting}",
        ],
        "backends, for a float32 image on the CPU": _backends(),
        "shipped models (lpn-fast info MODEL says more)": shipped or ["none"],
    }


def _cuda_module() -> list[str]:
    module, reason = _compiled("_cuda")
    if module is None:
        return [reason]
    report = module.device_report()
    runtime, driver = (_cuda_version(report[f"{part}_version"]) for part in ("runtime", "driver"))
    lines = [f"runtime {runtime}, driver {driver}, kernels for {module.code}"]
    if report["reason"]:
        lines.append(f"no device can be used: {report['reason']}")
    for device in report["devices"]:
        capability, memory = "{}.{}".format(*device["compute_capability"]), device["memory_bytes"] / 2**30
        lines.append(f"{device['name']}, compute capability {capability}, {memory:.0f} GiB")
    return lines


def _backends() -> list[str]:
    try:
        return explain(ConvLPN(1, hidden=8), torch.zeros(1, 1, 64, 64)).splitlines()
    except (RuntimeError, ValueError) as error:  # LPN_FAST_BACKEND names one that cannot run
        return [str(error)]


def _in_short(model: LPN) -> str:
    levels, own = model.spec.noise_levels, model.card.get("sigma")
    level = f"noise {levels[0]:g} to {levels[-1]:g}" if levels else "one noise level"
    level += f", {own:g}" if not levels and isinstance(own, int | float) else ""
    channels = "gray" if model.spec.channels == 1 else f"{model.spec.channels} channels"
    return f"{channels}, {sum(p.numel() for p in model.parameters()):,} parameters, {level}"


def _entries(table: dict, indent: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _entries(value, indent + "  ")
        else:
            yield f"{indent}{key}: {value if isinstance(value, str) else json.dumps(value)}"


def _compiled(name: str) -> tuple[object | None, str]:
    """A compiled module of the package, or why it is not there."""
    try:
        return importlib.import_module(f"lpn_fast.{name}"), ""
    except ModuleNotFoundError:
        return None, "not in the package, and no installed copy of this version has it; `pip install .` builds it"
    except ImportError as error:
        return None, f"built, but cannot be loaded: {error}"


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}" if number else "none"
