"""The launch table of the convolutions, measured: for every key the fastest tile whose result agrees with float64.

Candidates are compiled, checked for spills by their speed only (a spill may pay), checked against float64 on an image
whose size is off the tiles, then timed at the size of the published network. FOLDER/table.csv is the launch table with
the winners in it; with LPN_FAST_REWRITE_TABLE=1 kernels/triton/table.csv is rewritten too. Error first: compilers have
miscompiled 8-warp convolutions silently, so a candidate that differs is out whatever its speed.

Where a library's convolution with our step after it would lose no digits (kernels/triton/choices.py), that is timed
beside the winner, and FOLDER/choices.csv gets a line for kernels/triton/choices.csv.
"""

import csv
import dataclasses
import itertools
import os

import torch
import torch.nn.functional as F

from .part import Session, milliseconds, run_part

TOLERANCE = {"fp16": 1e-3, "bf16": 6e-3, "tf32": 1e-3}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}
BATCH = 32


def keys(arch: int, tiny: bool):
    """(key, image side) of what the published networks run."""
    from lpn_fast.kernels.triton.launch import Key

    if tiny:
        yield Key("forward_1", 16, 16, "fp16", arch), 4
        yield Key("transposed_1", 16, 16, "tf32", arch), 4
        return
    for channels, side in ((256, 64), (64, 28)):
        for role in ("forward_1", "forward_2", "transposed_1", "transposed_2", "gradient_1", "gradient_2"):
            yield Key(role, channels, channels, "fp16", arch), side
    for channels, side in ((256, 64), (64, 28)):  # where there is a choice; fp16's winners come first, time may end
        for role in ("forward_1", "forward_2", "transposed_1", "transposed_2"):
            yield Key(role, channels, channels, "tf32", arch), side


def candidates(key, tiny: bool):
    """Tile sizes worth trying, the rule's first."""
    from lpn_fast.kernels.triton.launch import Config, config

    yield config(key)
    if tiny:
        return
    gradient = key.role.startswith("gradient")
    depth = 128 if gradient else 32 if key.precision == "tf32" else 64
    wide = (key.c_out, 128) if key.c_out >= 128 else (64,)
    for channels, pixels, (warps, stages), tma in itertools.product(
        wide, (32, 64) if gradient else (128, 256), ((8, 3), (4, 3), (8, 4), (4, 4)), (True, False)
    ):
        if pixels * channels > 128 * 256 or (warps == 4 and pixels * channels > 128 * 128):
            continue
        if tma and key.arch < 90:
            continue
        yield Config(pixels, channels, min(depth, key.c_in), 32, warps, stages, tma)


def measure(session: Session) -> None:
    from lpn_fast.kernels.triton.interpreter import interpreted, mend

    if interpreted():
        mend()
    arch = 90
    if session.device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        arch = 10 * major + minor
    winners = {}
    for key, side in keys(arch, session.tiny):
        best = None
        for config in dict.fromkeys(candidates(key, session.tiny)):
            if session.seconds_left < 0:
                break
            try:
                error = _error(key, config, session.device)
                if not error <= TOLERANCE[key.precision]:
                    session.show(f"{key.role} {config}: error {error:.1e}, not admitted")
                    continue
                call = _call(key, config, session.device, 1 if session.tiny else BATCH, side)[0]
                call()
                ms, *_ = milliseconds(call, seconds=0.1, rounds=1 if session.tiny else 7)
            except Exception as failure:  # too much shared memory, a compiler's crash: not a candidate
                session.show(f"{key.role} {config}: {type(failure).__name__}")
                continue
            if best is None or ms < best[0]:
                best = ms, error, config
        if best is not None:
            winners[key] = best
            _compare(session, key, best[0], side)
            flop = _flop(key, 1 if session.tiny else BATCH, side)
            rate = flop / best[0] / 1e9
            session.add(
                key.role, "triton", 1e3 * best[0], "us", precision=key.precision, flop=flop, rel_err=best[1],
                shape=f"{side}x{side}x{key.c_in}", batch=BATCH, config=dataclasses.asdict(best[2]),
                line=f"{key.role:<14}{key.c_in:>4}  {1e3 * best[0]:9.1f} us {rate:7.1f} TFLOP/s  {best[2]}",
            )  # fmt: skip
    if winners and session.device == "cuda" and not session.tiny:
        source = f"measured {torch.cuda.get_device_name()} {session.commit}"
        session.out.mkdir(parents=True, exist_ok=True)
        rewrite(winners, source, session.out / "table.csv")
        if os.environ.get("LPN_FAST_REWRITE_TABLE") == "1":
            rewrite(winners, source)


def rewrite(winners: dict, source: str, path=None) -> None:
    """The launch table with the winners in it, rows of other keys as they are; in its place or at `path`."""
    from lpn_fast.kernels.triton.launch import TABLE

    path = path or TABLE
    with open(TABLE, newline="") as file:
        reader = csv.DictReader(file)
        columns, rows = reader.fieldnames, {tuple(r[c] for c in reader.fieldnames[:5]): r for r in reader}
    for key, (ms, error, config) in winners.items():
        values = dataclasses.asdict(key) | dataclasses.asdict(config)
        values |= {"tma": int(config.tma), "microseconds": f"{1e3 * ms:.1f}", "error": f"{error:.1e}", "source": source}
        row = {c: str(values[c]) for c in columns}
        rows[tuple(row[c] for c in columns[:5])] = row
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())


def _flop(key, batch: int, side: int) -> int:
    """Of the larger image of `side`; a gradient has two pairs."""
    stride = int(key.role[-1])
    pixels = batch * (side // stride) ** 2
    return 2 * 9 * key.c_in * key.c_out * pixels * (2 if key.role.startswith("gradient") else 1)


def _call(key, config, device: str, batch: int, side: int):
    """(launch, its result NHWC or [k, k, C, C], inputs) at one size; a random 3 x 3 correlation."""
    from lpn_fast.kernels.triton.correlate import correlate
    from lpn_fast.kernels.triton.gradient import gradient
    from lpn_fast.kernels.triton.launch import Geometry, tma_fits

    stride, dtype = int(key.role[-1]), DTYPES[key.precision]
    small = (side + 2 - 3) // stride + 1
    transposed = key.role.startswith("transposed")
    if config.tma and not tma_fits(key.c_in, config.depth, dtype.itemsize, 1 if transposed else stride, side, side):
        config = dataclasses.replace(config, tma=False)
    weight = (torch.rand(3, 3, key.c_in, key.c_out, device=device) / (9 * key.c_in)).to(dtype)
    z = torch.randn(batch, side, side, key.c_in, device=device).to(dtype)
    e = torch.randn(batch, small, small, key.c_out, device=device).to(dtype)
    geometry = Geometry(3, stride, 1)
    if key.role.startswith("gradient"):
        processors = torch.cuda.get_device_properties(0).multi_processor_count if device == "cuda" else 2
        return lambda: gradient([(e, z), (e, z)], geometry, config, key.precision, False, processors), z, e, weight
    if transposed:
        out, z = torch.full_like(z, float("nan")), z.abs()
        return (
            (lambda: correlate(out, e, weight, geometry, "slope", config, key.precision, True, z=z, beta=10.0)),
            z,
            e,
            weight,
        )
    out = torch.full_like(e, float("nan"))
    return lambda: correlate(out, z, weight, geometry, "forward", config, key.precision, beta=10.0), z, e, weight


def _compare(session: Session, key, ours: float, side: int) -> None:
    """Time the library's convolution and our step after it, where that is a choice; a line for choices.csv."""
    from lpn_fast.kernels.triton.choices import loses_digits
    from lpn_fast.kernels.triton.elementwise import elementwise

    from lpn_fast.ops.maps import correlation_adjoint

    if key.role.startswith("gradient") or loses_digits(key.role, key.precision):
        return
    stride, dtype, batch = int(key.role[-1]), DTYPES[key.precision], 1 if session.tiny else BATCH
    small = (side + 2 - 3) // stride + 1
    weight = (torch.rand(key.c_out, key.c_in, 3, 3, device=session.device) / (9 * key.c_in)).to(dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    shapes = (batch, side, side, key.c_in), (batch, small, small, key.c_out)
    z, e = (torch.rand(shape, device=session.device).to(dtype) for shape in shapes)
    z_view, e_view = z.permute(0, 3, 1, 2), e.permute(0, 3, 1, 2)
    out = torch.empty_like(z if key.role.startswith("transposed") else e)

    def library():
        if key.role.startswith("transposed"):
            product = correlation_adjoint(e_view, z_view, weight, stride, 1)
            return elementwise(out, product.permute(0, 2, 3, 1).contiguous(), "slope", 10.0, z=z)
        product = F.conv2d(z_view, weight, None, stride, 1)
        return elementwise(out, product.permute(0, 2, 3, 1).contiguous(), "forward", 10.0)

    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = key.precision == "tf32"
    try:
        library()
        ms, *_ = milliseconds(library, seconds=0.1, rounds=1 if session.tiny else 7)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    pixels = out.shape[0] * out.shape[1] * out.shape[2]
    session.show(f"{key.role:<14}{key.c_in:>4}  {key.precision}: library {1e3 * ms:.1f} us, ours {1e3 * ours:.1f} us")
    if session.device == "cuda" and not session.tiny:
        device, name = torch.cuda.get_device_name(), key.role
        line = (device, name, key.c_in, key.c_out, key.precision, pixels, f"{1e3 * ours:.1f}", f"{1e3 * ms:.1f}")
        session.out.mkdir(parents=True, exist_ok=True)
        with open(session.out / "choices.csv", "a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow((*line, "", session.commit))


def _error(key, config, device: str) -> float:
    """Relative L2 error against float64 at two sizes: one that the tiles divide, one that they do not."""
    worst = 0.0
    for side in (4, 5) if device == "cpu" else (16, 18, 19):
        call, z, e, weight = _call(key, config, device, 3, side)
        result = call().double()
        z, e = (t.double().permute(0, 3, 1, 2) for t in (z, e))
        core, stride = weight.double().permute(3, 2, 0, 1), int(key.role[-1])
        if key.role.startswith("gradient"):
            truth = 2 * torch.nn.grad.conv2d_weight(z, core.shape, e, stride, 1).permute(2, 3, 1, 0)
        elif key.role.startswith("transposed"):
            truth = torch.nn.grad.conv2d_input(z.shape, core, e, stride, 1) * -torch.expm1(-10.0 * z)
            truth = truth.permute(0, 2, 3, 1)
        else:
            truth = F.softplus(F.conv2d(z, core, None, stride, 1), 10.0, 1e3).permute(0, 2, 3, 1)
        error = ((result - truth).norm() / truth.norm()).item()
        worst = max(worst, float("inf") if error != error else error)
    return worst


if __name__ == "__main__":
    raise SystemExit(run_part(__name__, __doc__, measure))
