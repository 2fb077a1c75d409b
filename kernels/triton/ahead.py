"""What the compiler makes of a launch configuration, for an architecture that need not be there.

Compiles a kernel as a launch would (pointers and sizes aligned to 16 as PyTorch's are; cores and skips of a Form) and
reads registers, spills, shared memory and tensor-core instructions off the result.
"""

import functools
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import (
    assemble,
    elementwise,
    explicit,
    explicit_gradient,
    frame,
    frame_gradient,
    launch,
    positions,
    units,
)
from .correlate import correlate_kernel
from .gradient import gradient_kernel
from .hazards import register_hazards
from .launch import DOT_PRECISION, Config, Key, power_of_two, tile_shape
from .tiles import TRITON_TYPE, stages_of

FLOATS = ("gain", "dgain", "unscale", "beta", "weight_scale", "core_scale", "alpha")  # scalars that are no integers
ELEMENT = {tl.float32: "fp32", tl.float16: "fp16", tl.bfloat16: "bf16"}


@dataclass(frozen=True)
class Form:
    """What of a launch the launch table does not say."""

    kernel: int = 3
    channels: int = 3  # the image's
    skip_kernel: int = 3
    square_first: bool = False

    @property
    def columns(self) -> int:
        """Columns of the patches that the first skip multiplies."""
        return self.channels * self.skip_kernel**2


PUBLISHED = Form()
# The denoisers that ship: a frame of squared coefficients, one stage of gates behind it that look at single pixels.
FRAMES = {(49, 96): Form(1, 1, 7, True), (75, 144): Form(1, 3, 5, True)}

WHOLE_FRAMES = ((7, 1, 128, True), (7, 1, 96, False), (5, 3, 192, True), (5, 3, 144, False))  # k, C, gates, competing
# k, C, groups, free filters; 0: an orthonormal basis, as priors have it unless they are told otherwise
EXPLICIT_PRIORS = ((13, 1, 96, 80), (7, 1, 64, 0), (5, 3, 96, 0))


@dataclass(frozen=True)
class Report:
    """Resources of one compiled kernel."""

    registers: int  # per thread
    spilled_bytes: int  # stack per thread
    shared_bytes: int  # per block
    tensor_core: int  # wgmma and mma instructions in the PTX
    tma_loads: int
    hazards: tuple[str, ...]  # instructions that overwrite what a product still reads


def launches(arch: int, frame_precisions: tuple[str, ...] = ("fp16",)) -> list[tuple[Key, Config, bool, Form]]:
    """What the gates compile for `arch`: the launch table, and the kernels of the denoisers that ship."""
    frames = {}
    for (coefficients, gates), form in FRAMES.items():
        ways = (
            ("image", 0, coefficients), ("forward_1", coefficients, gates), ("transposed_1", gates, coefficients),
            ("adjoint_1", gates, coefficients), ("project", coefficients, form.columns),
            ("gradient_1", coefficients, gates), ("gradient_image", form.columns, coefficients),
        )  # fmt: skip
        frames |= {Key(*way, precision, arch): form for way in ways for precision in frame_precisions}
    table = {key: PUBLISHED for key in launch.table() if key.arch == arch}
    found = []
    for key, form in (table | frames).items():
        steps = key.role.startswith(("transposed", "adjoint")) and form.columns <= launch.MOST_PROJECTED
        found += [(key, launch.config(key), projects, form) for projects in ((False, True) if steps else (False,))]
    return found


def report(key: Key, config: Config, projects: bool = False, form: Form = PUBLISHED) -> Report:
    """Compile the kernel of `key.role` with `config` for `key.arch`; a transposed one that `projects` onto a skip."""
    if key.role.startswith("gradient"):
        kernel, pointers, constants = _gradient(key, config, form)
    else:
        kernel, pointers, constants = _correlate(key, config, projects, form)
    return _compiled(kernel, pointers, constants, key.arch, config.warps, config.stages)


def small_kernels(arch: int) -> dict[str, Report]:
    """Compile the kernels around the products, which have no configurations, for `arch`."""
    skip = {"CHANNELS": 3, "KERNEL": 3, "STRIDE": 2, "PADDING": 1, "RESIZE": 2, "BLOCK": assemble.BLOCK}
    operands = dict.fromkeys(("out", "product", "z", "e", "dz"), "*fp16")
    heads = dict.fromkeys(("rest", "bias", "head", "head_squared", "head_unit"), "*fp32")
    steps = {"CHANNELS": 64, "BLOCK": elementwise.BLOCK}
    found = {
        "assemble": (assemble.assemble_kernel, {"f": "*fp32", "products": "*fp32"}, {"PARTS": 2} | skip, 4),
        "fold": (
            frame.fold_kernel,
            {"f": "*fp32", "rows": "*fp32", "x": "*fp32"},
            {"CHANNELS": 3, "KERNEL": 5, "BLOCK": frame.BLOCK},
            4,
        ),
        "units": (
            units.units_kernel,
            {"units": "*fp32", "bounds": "*fp32"},
            {"STAGES": 5, "SQUARE_FIRST": True, "WIDE": units.WIDE},
            1,
        ),
    }
    for step in ("forward", "slope", "tangent", "adjoint", "square_factor", "square_adjoint"):
        found[step] = elementwise.elementwise_kernel, operands | heads, {"EPILOGUE": step} | steps, 4
    return {name: _compiled(*what[:3], arch, what[3], 3) for name, what in found.items()}


def fused_kernels(arch: int, precisions: tuple[str, ...] = ("fp32", "tf32", "fp16")) -> dict[str, Callable[[], Report]]:
    """Name -> compilation for `arch`: whole frames, mixtures and explicit priors of the shapes that ship."""
    found = {}
    reports = dict.fromkeys(("prox", "value", "hvp", "vjp"), frame_report)
    reports |= dict.fromkeys(("v", "scale"), frame_gradient_report)
    for precision in precisions:
        for what, report in reports.items():
            for form in WHOLE_FRAMES:
                name = f"{'mixture' if form[-1] else 'frame'} {form[0]}x{form[0]}x{form[1]} {precision} {what}"
                for mirrored in (False, True):
                    shown = f"mirrored {name}" if mirrored else name
                    found[shown] = functools.partial(report, arch, precision, *form, what, mirrored)
    reports = dict.fromkeys(("gradient", "value", "hvp", "factors"), explicit_report)
    reports |= dict.fromkeys(("v", "scale"), explicit_gradient_report)
    for what, report in reports.items():  # which are solved in float32
        for k, channels, groups, filters in EXPLICIT_PRIORS:
            name = f"explicit {k}x{k}x{channels} fp32 {what}"
            count = filters or channels * k**2
            found[name] = functools.partial(report, arch, "fp32", k, channels, groups, count, what)
    return found


def frame_report(
    arch: int,
    precision: str,
    kernel: int,
    channels: int,
    gates: int,
    competing: bool,
    what: str = "prox",
    mirrored: bool = False,
) -> Report:
    """Compile the kernel of a whole frame, of `channels` images and `kernel` x `kernel` atoms, for `arch`.

    `what` is "prox", "value", "hvp", or "vjp": that, with what gradients of the weights need.
    """
    element, count, second = ELEMENT[TRITON_TYPE[precision]], channels * kernel**2, what in ("hvp", "vjp")
    tile = frame.default_tile(count, precision, arch, second, what == "vjp", mirrored)
    gain = frame.HALF_GAIN if precision == "fp16" else 1.0
    constants = frame.constants(channels, kernel, count, gates, precision, gain, tile)
    constants |= {"COMPETING": competing, "x_w": 1, "v_w": 1}
    pointers = dict.fromkeys(("rows", "x", "bias", "head", "gate_head", "gate_unit"), "*fp32")
    pointers |= {"atoms": f"*{element}", "core": f"*{element}"}
    _optional({"psi": what == "value", "v": second, "shares": what == "vjp" and competing}, pointers, constants)
    _optional(dict.fromkeys(("sent", "turned"), what == "vjp"), pointers, constants, element)
    _optional(dict.fromkeys(("mirrored_rows", "mirrored_columns"), mirrored), pointers, constants, "i32")
    _optional(dict.fromkeys(("row_weights", "column_weights"), mirrored), pointers, constants)
    return _compiled(frame.frame_kernel, pointers, constants, arch, tile[-1], 1)


def frame_gradient_report(
    arch: int,
    precision: str,
    kernel: int,
    channels: int,
    gates: int,
    competing: bool,
    what: str = "v",
    mirrored: bool = False,
) -> Report:
    """Compile the kernel of a whole frame's gradients in its gates for `arch`.

    `what` is "v", of <v, f>, or "scale", of a sum of psi.
    """
    element, count = ELEMENT[TRITON_TYPE[precision]], channels * kernel**2
    tile = frame_gradient.default_tile(count, precision, mirrored)
    constants = positions.constants(channels, kernel, count, gates, precision, tile)
    names = ("of_core", "of_gates", "of_head", "x", "bias", "gate_head")
    pointers = dict.fromkeys(names, "*fp32") | {"atoms": f"*{element}", "core": f"*{element}"}
    _optional({"v": what == "v", "scale": what == "scale", "shares": competing}, pointers, constants)
    _optional(dict.fromkeys(("row_weights", "column_weights"), mirrored), pointers, constants)
    return _compiled(frame_gradient.frame_gradient_kernel, pointers, constants, arch, tile[-1], 1)


def explicit_report(
    arch: int, precision: str, kernel: int, channels: int, gates: int, count: int, what: str = "gradient"
) -> Report:
    """Compile the kernel of an explicit prior of `count` atoms for `arch`.

    `what` is "gradient" of R, "value" (and gradient), "hvp", or what of these gradients in the atoms need, "factors".
    """
    element, second = ELEMENT[TRITON_TYPE[precision]], what in ("hvp", "factors")
    tile = explicit.default_tile(count, kernel, precision, arch, second, what == "factors")
    gain = frame.HALF_GAIN if precision == "fp16" else 1.0
    constants = frame.constants(channels, kernel, count, gates, precision, gain, tile) | {"x_w": 1, "v_w": 1}
    constants["HOIST"] = explicit.hoists(count, kernel, arch, second)
    pointers = dict.fromkeys(("x", "slope", "near", "far", "row_weights", "column_weights"), "*fp32")
    pointers |= {"atoms": f"*{element}", "core": f"*{element}", "mirrored_rows": "*i32", "mirrored_columns": "*i32"}
    _optional({"rows": what != "factors", "value": what == "value", "v": second}, pointers, constants)
    _optional(dict.fromkeys(("sent", "turned"), what == "factors"), pointers, constants, element)
    return _compiled(explicit.explicit_kernel, pointers, constants, arch, tile[-1], 1)


def explicit_gradient_report(
    arch: int, precision: str, kernel: int, channels: int, gates: int, count: int, what: str = "v"
) -> Report:
    """Compile the kernel of an explicit prior's gradients in its groups, of `count` atoms, for `arch`.

    `what` is "v", of <v, grad R>, or "scale", of a sum of R.
    """
    element = ELEMENT[TRITON_TYPE[precision]]
    tile = explicit_gradient.default_tile(count, precision)
    constants = positions.constants(channels, kernel, count, gates, precision, tile)
    names = ("of_core", "of_gates", "x", "slope", "near", "far", "row_weights", "column_weights")
    pointers = dict.fromkeys(names, "*fp32") | {"atoms": f"*{element}", "core": f"*{element}"}
    _optional({"v": what == "v", "scale": what == "scale"}, pointers, constants)
    return _compiled(explicit_gradient.explicit_gradient_kernel, pointers, constants, arch, tile[-1], 1)


def _optional(wanted: dict[str, bool], pointers: dict, constants: dict, element: str = "fp32") -> None:
    """Arguments that a kernel takes, or None for."""
    for name, is_there in wanted.items():
        if is_there:
            pointers[name] = f"*{element}"
        else:
            constants[name] = None


def _compiled(kernel, pointers: dict, constants: dict, arch: int, warps: int, stages: int) -> Report:
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = pointers[name]
            if pointers[name].startswith("*"):
                attributes[index,] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
    source = ASTSource(
        kernel, signature, {(kernel.arg_names.index(n),): value for n, value in constants.items()}, attributes
    )
    target = GPUTarget("cuda", arch, 32)
    compiled = triton.compile(source, target, {"num_warps": warps, "num_stages": stages})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    ptx = compiled.asm["ptx"]
    tensor_core = len(re.findall(r"wgmma\.mma_async|mma\.sync", ptx))
    loads = ptx.count("cp.async.bulk.tensor")
    hazards = tuple(register_hazards(compiled.asm["sass"]))
    return Report(int(registers), int(stack), compiled.metadata.shared, tensor_core, loads, hazards)


def _correlate(key: Key, config: Config, projects: bool, form: Form):
    storage = TRITON_TYPE[key.precision]
    element, plain = ELEMENT[storage], key.role == "project"
    transposed = plain or key.role.startswith(("transposed", "adjoint"))
    stride = int(key.role[-1]) if key.role[-1].isdigit() else 1
    pair = "alone"
    if form.square_first:
        pair = "product" if plain else "square" if key.role.startswith("forward") else "alone"
    if transposed and not plain:
        epilogue = "adjoint" if key.role.startswith("adjoint") else "slope"
        if form.square_first:
            epilogue = "square_factor" if epilogue == "slope" and not projects else f"square_{epilogue}"
    else:
        epilogue = "plain" if plain or (form.square_first and key.role == "image") else "forward"
    box = tile_shape(config.pixels, 64, 32, 32, config.tma)
    pointers = {n: f"*{element}" for n in ("t", "weight", "skip", "z", "e", "dz")}
    pointers |= {"out": "*fp32" if plain else f"*{element}", "x": "*fp32", "bias": "*fp32", "head": "*fp32"}
    absent = {"head_squared", "head"} | ({"x", "skip", "bias"} if transposed else set())
    units = {"product_unit", "head_unit"}  # half precision has them where it sweeps back
    if key.precision == "fp16" and transposed:
        pointers |= dict.fromkeys(units, "*fp32")
    else:
        absent |= units
    if projects:
        pointers |= {"projection": f"*{element}", "projected": "*fp32"}
        absent |= {"projected_unit"}
    else:
        absent |= {"projection", "projected", "projected_unit"}
    if epilogue in ("forward", "plain"):
        absent |= {"z", "e", "dz"}
    elif not epilogue.endswith("adjoint"):
        absent |= {"e", "dz"}
    if pair == "product":
        pointers["other"] = pointers["t"]
    else:
        absent |= {"other"}
    if key.role == "image":
        absent |= {"t", "weight"}
    if form.square_first:
        absent |= {"bias"} if key.role == "image" else {"x", "skip"}
    if config.tma:
        pointers["t"] = _descriptor(element, box, config.depth, 1 if transposed else stride)
        block = (config.channels, config.depth) if transposed else (config.depth, config.channels)
        pointers["weight"] = f"tensordesc<{element}[{block[0]},{block[1]}]>"
    constants = {
        "C_IN": 0 if key.role == "image" else key.c_in, "C_OUT": key.c_out, "HEAD": 1,
        "KERNEL": 0 if key.role == "image" else 1 if plain else form.kernel, "STRIDE": stride,
        "PADDING": 0 if plain else form.kernel // 2, "TRANSPOSED": transposed,
        "CHANNELS": 1 if "skip" in absent else form.channels,
        "SKIP_KERNEL": 0 if "skip" in absent else form.skip_kernel, "SKIP_STRIDE": stride, "SKIP_PADDING": 1,
        "RESIZE": 1, "PAIR": pair, "EPILOGUE": epilogue, "STORAGE": storage,
        "PRECISION": DOT_PRECISION[key.precision], "BI": box[0], "BH": box[1], "BW": box[2],
        "BN": config.channels, "BK": config.depth, "BX": config.columns, "TMA": config.tma, "x_w": 1,
        "PROJECTED": form.columns if projects else 0, "PROJECTED_BLOCK": max(16, power_of_two(form.columns)),
        "STAGES": stages_of(pair, config),
    }  # fmt: skip
    return correlate_kernel, pointers, constants | dict.fromkeys(absent)


def _gradient(key: Key, config: Config, form: Form):
    storage = TRITON_TYPE[key.precision]
    element, image = ELEMENT[storage], key.role == "gradient_image"
    stride = 1 if image else int(key.role[-1])
    box = tile_shape(config.pixels, 64, 32, 32, config.tma and not image)
    pointers = {"parts": "*fp32", "d": f"*{element}", "e": f"*{element}"}
    pointers |= dict.fromkeys(("t", "dt"), "*fp32" if image else f"*{element}")
    squares = form.square_first and not image
    if squares:
        pointers["dother"] = pointers["dt"]
    if config.tma and not image:
        pointers |= dict.fromkeys(("d", "e"), _descriptor(element, box, config.channels, 1))
        pointers |= dict.fromkeys(("t", "dt"), _descriptor(element, box, config.depth, stride))
    constants = {
        "C_IN": form.channels if image else key.c_in, "C_OUT": key.c_out,
        "KERNEL": form.skip_kernel if image else form.kernel, "STRIDE": stride, "PADDING": 1, "RESIZE": 1,
        "IMAGE": image, "PAIR": "square" if squares else "alone", "DPAIR": "product" if squares else "alone",
        "STORAGE": storage, "PRECISION": DOT_PRECISION[key.precision],
        "BI": box[0], "BH": box[1], "BW": box[2], "BM": config.depth, "BN": config.channels,
        "TMA": config.tma and not image, "x_w": 1, "v_w": 1,
        "STAGES": stages_of("square" if squares else "alone", config),
        "DSTAGES": stages_of("product" if squares else "alone", config),
    }  # fmt: skip
    return gradient_kernel, pointers, constants | dict.fromkeys({"other", "dother"} - set(pointers))


def _descriptor(element: str, box: tuple[int, int, int], channels: int, stride: int) -> str:
    shape = [*box, channels] if stride == 1 else [box[0], box[1], 1, box[2], channels]
    return f"tensordesc<{element}[{','.join(map(str, shape))}]>"
