"""Bytes, operations and expected time of one pass of every model that ships, by arithmetic: nothing is run.

    python -m bench.gpu.arithmetic [--batch 64] [--size 512 512] [--work prox] [--model FILE ...] [--markdown]

A way to compute is a list of kernels, and a kernel takes as long as the slowest of its floating-point operations, its
bytes and its special functions at the data sheet's rates, and 4 us at the least. Caches between kernels count for
nothing, which is right where activations are larger than they are; nor do weights, which every block reads again.
Ways that are compared are counted alike:

    eager     the plain network and autograd, one kernel per torch operation
    compile   torch.compile of the same: element-wise steps fused, products and convolutions the library's
    torch     lpn_fast's torch backend (ops/backends/pointwise.py), or its sweeps
    triton    lpn_fast's kernels: psi and f in one (kernels/triton/frame.py), or one per stage

A pass is a prox, of explicit priors a gradient of R (a step of their solve, kernels/triton/explicit.py). Their torch
backend goes block by block of positions, so that a GPU waits for launches.

`--work gradient` counts f and the gradients of a loss of f in x and the weights, of explicit priors those of
<v, grad R> in the potentials alone. Its ways are `stages`, where each stage goes by itself and only what counters.py
says is stored, which is the least of torch and of a compiler, and `triton`, where everything is in the fused kernels.

`fraction` is the time of the slower of the network's own operations, and of reading x and writing f once, over the
time of the way. Numbers of a table like this one are expectations, to be replaced by what a device says.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import lpn_fast as lf
from lpn_fast.algebra.patches import POSITIONS
from lpn_fast.algebra.spec import Spec
from lpn_fast.benchmark.counters import ACTIVATION_PASSES, work
from lpn_fast.kernels.triton import explicit, explicit_gradient, frame, frame_gradient, positions
from lpn_fast.ops.backends.triton import fused

LAUNCH_US = 4.0


@dataclass(frozen=True)
class Device:
    """Data sheet: dense rates without sparsity, special functions at 16 per clock and multiprocessor."""

    name: str
    bytes_per_s: float
    fp16: float  # FLOP/s with float32 accumulation
    tf32: float
    fp32: float
    special: float
    arch: int


DEVICES = (
    Device("H200", 4.8e12, 989e12, 494e12, 67e12, 16 * 132 * 1.98e9, 90),
    Device("A100 80 GB", 2.04e12, 312e12, 156e12, 19.5e12, 16 * 108 * 1.41e9, 80),
    Device("RTX 4090", 1.01e12, 165e12, 82.6e12, 82.6e12, 16 * 128 * 2.52e9, 89),
)
PRECISIONS = ("fp32", "tf32", "fp16")
# Of networks that go stage by stage: how often each unit is read or written in a pass, and launches per stage.
#   eager     core 2, skip 1, bias 2, their sum 3, softplus 2; its derivative 3, adjoints of core 2 and skip 1
#   compile   what is element by element at once: sum, bias and softplus 4 (u is kept for the way back)
#   torch     in place, and the slope from z alone: rest 3, bias 2, softplus 2; slope 6, product 3
#   triton    a product with its step: z written, read and read again, e written and read
BY_STAGES = {"eager": (16, 8), "compile": (13, 6), "torch": (22, 11), "triton": (5, 2)}


@dataclass(frozen=True)
class Kernel:
    """One launch: bytes, floating-point operations at the rate of a precision, special functions."""

    bytes: float
    flop: float = 0
    rate: str = "fp32"
    special: float = 0
    count: int = 1  # such launches

    def seconds(self, device: Device) -> float:
        bounds = self.bytes / device.bytes_per_s, self.flop / getattr(device, self.rate), self.special / device.special
        return self.count * max(*bounds, 1e-6 * LAUNCH_US)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    model: str
    device: str
    precision: str
    way: str
    gigabytes: float
    teraflop: float
    milliseconds: float
    fraction: float


def ways(spec, shape: tuple[int, int, int, int], precision: str, arch: int) -> dict[str, list[Kernel]]:
    """The kernels of one pass, by way."""
    if spec.kind == "explicit":
        return _of_an_explicit_prior(spec, shape, arch)
    if fused.covers(spec):
        return _of_a_frame(spec, shape, precision, arch)
    found = {}
    for way, (passes, per_stage) in BY_STAGES.items():
        own, launches = way == "triton", per_stage * len(spec.stages)
        done = work(spec, "prox", shape, 2 if own and precision == "fp16" else 4)
        moved = done.activation_bytes * passes / ACTIVATION_PASSES["prox"] + done.other_bytes
        rate = "tf32" if own and precision == "fp32" else precision if own else _product(precision)
        flop = done.flop * (3 if own and precision == "fp32" else 1)
        found[way] = [Kernel(moved / launches, flop / launches, rate, done.special / launches)] * launches
    return found


def gradient_ways(spec, shape: tuple[int, int, int, int], precision: str, arch: int) -> dict[str, list[Kernel]]:
    """The kernels of a gradient, by way; of frames and explicit priors."""
    storage = 2 if precision == "fp16" else 4
    explicit_one = spec.kind == "explicit"
    done, stages = work(spec, "gradient", shape, storage), 12
    rate = precision if precision == "fp16" else _product(precision)
    each = Kernel((done.activation_bytes + done.other_bytes) / stages, done.flop / stages, rate, done.special / stages)
    n, m, k = (spec.atoms, spec.groups, spec.kernel) if explicit_one else (
        spec.stages[0].width, spec.stages[1].width, spec.stages[0].skip_kernel
    )  # fmt: skip
    competing = not explicit_one and spec.stages[1].competing
    special = m if competing else 2 * m
    if explicit_one:
        before, tile = [], explicit.default_tile(n, k, precision, arch, True, True)
        of_gates = explicit_gradient.default_tile(n, precision)
    else:
        before, tile = _fused(spec, shape, precision, arch), frame.default_tile(n, precision, arch, True, True)
        of_gates = frame_gradient.default_tile(n, precision)
    products = _in_one_kernel(shape, k, n, m, precision, tile, special, hessian=True, margin=explicit_one * (k - 1))
    places, image = _positions(shape, k), 4 * shape[0] * shape[1] * shape[2] * shape[3]
    factors, normal = 2 * n * storage * places, 12 * places * competing
    first, *folds = products
    first = Kernel(first.bytes + image + factors + normal, first.flop, first.rate, first.special)
    if explicit_one:  # whose Hessian products are another call
        folds = []
    block = positions.constants(shape[1], k, n, m, precision, of_gates)
    forward, back = {"fp16": (2, 2), "tf32": (1, 1), "fp32": (3, 3)}[precision]  # sums are TF32's: half of fp16's rate
    blocks = -(-m // block["BG"])
    units = block["UNITS_BLOCK"]
    flop = 4 * units * blocks * (block["TAPS"] * forward + block["BG"] * (forward + back))
    rate = "fp16" if precision == "fp16" else "tf32"
    kernels = [
        *before, first, *folds, Kernel(4 * image),
        Kernel(2 * image + normal, places * flop, rate, places * special),
        Kernel(2 * image + factors, places * 4 * units * block["TAPS"] * forward, rate),
    ]  # fmt: skip
    return {"stages": [each] * stages, "triton": kernels}


def floor(spec, shape: tuple[int, int, int, int], precision: str, device: Device, what: str = "prox") -> float:
    """Seconds of the network's own operations, or of x and f, whichever takes longer."""
    flop = work(spec, what, shape).flop
    images = 8 * shape[0] * shape[1] * shape[2] * shape[3]
    rate = device.tf32 / 3 if precision == "fp32" else getattr(device, precision)  # three products have its digits
    return max(images / device.bytes_per_s, flop / max(rate, device.fp32 if precision == "fp32" else 0))


def models() -> list[tuple[str, lf.LPN]]:
    """Shipped models that have kernels of ours, by name: all but those whose experts compete in contexts."""
    found = [(name, lf.pretrained(name)) for name in lf.list_pretrained()]
    return [(name, model) for name, model in found if not model.spec.has_contexts]


def table(batch: int, size: tuple[int, int], what: str = "prox", chosen: list | None = None) -> list[Row]:
    """All rows of a pass or a gradient, of shipped or `chosen` (name, model); equal descriptions share theirs."""
    rows: list[Row] = []
    names: dict[Spec, list[str]] = {}
    for name, model in models() if chosen is None else chosen:
        names.setdefault(model.spec, []).append(name)
    count = gradient_ways if what == "gradient" else ways
    for spec, named in names.items():
        if what == "gradient" and not (spec.kind == "explicit" or fused.covers(spec)):
            continue
        name = ", ".join(named)
        shape = (batch, spec.channels, *(spec.image_size or size))
        for device in DEVICES:
            for precision in PRECISIONS if spec.kind != "explicit" else ("fp32",):  # in which it is solved
                least = floor(spec, shape, precision, device, what)
                for way, kernels in count(spec, shape, precision, device.arch).items():
                    seconds = sum(kernel.seconds(device) for kernel in kernels)
                    moved, flop = (sum(k.count * getattr(k, what) for k in kernels) for what in ("bytes", "flop"))
                    figures = moved / 1e9, flop / 1e12, 1e3 * seconds, least / seconds
                    rows.append(Row(name, device.name, precision, way, *figures))
    return rows


def _of_a_frame(spec: Spec, shape, precision: str, arch: int) -> dict[str, list[Kernel]]:
    first, gates = spec.stages
    n, m, k = first.width, gates.width, first.skip_kernel
    step = _steps(shape, k, n, m, _product(precision))
    taps = spec.channels * k * k
    analyse, combine = 2 * taps * n, 2 * n * m
    competing = spec.stages[-1].competing
    soft = [step(passes_m=p, special=s * m) for p, s in ((1, 0), (2, 0), (2, 1), (1, 0))]  # max, sub, exp, sum
    soft_back = [step(passes_m=p, special=s * m) for p, s in ((2, 0), (2, 1), (2, 0))]  # sub, exp, times the cotangent
    softplus = [step(passes_m=2, special=2 * m), step(passes_m=1)]  # and the sum
    softplus_back = [step(passes_m=3, special=2 * m)]
    eager = [
        step(1, flop=analyse, images=1), step(2), step(1), step(1, 1, combine), step(passes_m=2),
        *(soft if competing else softplus), *(soft_back if competing else softplus_back),
        step(1, 1, combine), step(3), step(2), step(3), step(1, flop=analyse, images=1), step(images=3),
    ]  # fmt: skip
    special = m if competing else 2 * m
    compiled = [
        step(1, flop=analyse, images=1), step(2), step(1, 1, combine), step(passes_m=2, special=special),
        step(1, 1, combine), step(3), step(1, flop=analyse, images=1), step(images=3),
    ]  # fmt: skip
    plain = list(compiled)  # with the biases inside the products
    return {"eager": eager, "compile": compiled, "torch": plain, "triton": _fused(spec, shape, precision, arch)}


def _of_an_explicit_prior(spec, shape, arch: int) -> dict[str, list[Kernel]]:
    n, m, k = spec.atoms, spec.groups, spec.kernel
    analyse, combine, special = 2 * spec.channels * k * k * n, 2 * n * m, 2 * m

    def torch(step) -> list[Kernel]:
        root = step(passes_m=2, special=m)
        gates = [step(passes_m=2), root, step(passes_m=2), root, *[step(passes_m=2)] * 2, step(passes_m=3)]
        around = [step(1, flop=analyse, images=1), step(2), step(1, 1, combine)]
        return [*around, *gates, step(1, 1, combine), step(3), step(2), step(1, flop=analyse, images=1)]

    step = _steps(shape, k, n, m, "fp32")
    compiled = [
        step(1, flop=analyse, images=2), step(2), step(1, 1, combine), step(passes_m=2, special=special),
        step(1, 1, combine), step(3), step(1, flop=analyse, images=1), step(images=2),
    ]  # fmt: skip
    width = shape[3] + k - 1
    rows = max(1, POSITIONS // width)
    blocks = shape[0] * -(-(shape[2] + k - 1) // rows)
    one = torch(_steps((1, shape[1], rows - k + 1, shape[3]), k, n, m, "fp32"))
    apiece = [Kernel(o.bytes, o.flop, o.rate, o.special, blocks) for o in one]
    tile = explicit.default_tile(n, k, "fp32", arch)
    kernels = _in_one_kernel(shape, k, n, m, "fp32", tile, special, margin=k - 1)
    return {"eager": torch(step), "compile": compiled, "torch": apiece, "triton": kernels}


def _positions(shape, k: int) -> int:
    return shape[0] * (shape[2] + k - 1) * (shape[3] + k - 1)


def _steps(shape, k: int, n: int, m: int, rate: str):
    """What makes kernels of passes over n and m float32 values per position, and over images."""
    positions, image = _positions(shape, k), 4 * shape[0] * shape[1] * shape[2] * shape[3]

    def step(
        passes_n: float = 0, passes_m: float = 0, flop: float = 0, images: float = 0, special: float = 0
    ) -> Kernel:
        moved = 4 * positions * (passes_n * n + passes_m * m) + images * image
        return Kernel(moved, positions * flop, rate, positions * special)

    return step


def _fused(spec: Spec, shape, precision: str, arch: int) -> list[Kernel]:
    first, gates = spec.stages
    tile = frame.default_tile(first.width, precision, arch)
    special = gates.width * (1 if gates.competing else 2)
    return _in_one_kernel(shape, first.skip_kernel, first.width, gates.width, precision, tile, special)


def _in_one_kernel(
    shape, k: int, n: int, m: int, precision: str, tile, special: int, margin: int = 0, hessian: bool = False
) -> list[Kernel]:
    """The kernel and the fold of its sums of rows; `margin`: pixels beyond the border that are summed as well."""
    batch, channels, height, width = shape
    block = frame.constants(channels, k, n, m, precision, 1.0, tile)
    step = block["BM"] - k + 1
    blocks = batch * (height + k - 1) * -(-(width + 2 * margin) // step)
    computed = blocks * block["BM"]  # positions, those of two tiles twice
    padded = -(-m // block["BG"]) * block["BG"]
    # operands in two halves count twice, float32's digits take three products
    forward, back = {"fp16": (2, 1), "tf32": (1, 1), "fp32": (3, 3)}[precision]
    adjoint = block["TAPS"] * back
    flop = computed * 2 * block["UNITS_BLOCK"] * (
        (block["TAPS"] * forward + padded * (forward + back)) * (1 + hessian) + adjoint
    )  # fmt: skip
    image = 4 * batch * channels * height * width
    sums = 4 * batch * channels * k * (height + k - 1) * (width + 2 * margin)
    folded = [Kernel(sums + 2 * image)] if not margin else [Kernel(sums + image), Kernel(2 * image)]
    rate = "fp16" if precision == "fp16" else "tf32"
    return [Kernel(image + sums, flop, rate, computed * special), *folded]


def _product(precision: str) -> str:
    """The rate of torch's products: of frames TF32 where 16 bits are named."""
    return "fp32" if precision == "fp32" else "tf32"


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.arithmetic", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"))
    parser.add_argument("--work", choices=("prox", "gradient"), default="prox")
    parser.add_argument("--model", nargs="+", metavar="FILE", help="instead of those that ship")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args(arguments)
    titles = ("model", "device", "precision", "way", "GB", "TFLOP", "ms", "fraction")
    lines = [titles]
    chosen = args.model and [(Path(file).stem, lf.load(file)) for file in args.model]
    for row in table(args.batch, tuple(args.size), args.work, chosen):
        numbers = f"{row.gigabytes:.1f}", f"{row.teraflop:.2f}", f"{row.milliseconds:.2f}", f"{row.fraction:.2f}"
        lines.append((row.model, row.device, row.precision, row.way, *numbers))
    for number, line in enumerate(lines):
        if args.markdown:
            print("| " + " | ".join(line) + " |")
            if not number:
                print("|" + "---|" * len(line))
        else:
            print(f"{line[0]:<42}{line[1]:<12}{line[2]:<10}{line[3]:<9}" + "".join(f"{n:>9}" for n in line[4:]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
