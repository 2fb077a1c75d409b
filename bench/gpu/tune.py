"""The launch table of the convolutions, measured: for every key the fastest tile whose result agrees with float64.

Candidates are compiled and checked against float64 on images whose sizes are off the tiles, many at once in processes
of their own: a compiler takes seconds, and a kernel that breaks the device's context breaks that of one worker. Those
that agree are timed here, one by one, at the size of the published network. FOLDER/table.csv is the launch table with
the winners in it; with LPN_FAST_REWRITE_TABLE=1 kernels/triton/table.csv is rewritten too. Error first: compilers have
miscompiled 8-warp convolutions silently, so a candidate that differs is out whatever its speed.

Where a library's convolution with our step after it would lose no digits (kernels/triton/choices.py), that is timed
beside the winner, and FOLDER/choices.csv gets a line for kernels/triton/choices.csv.
"""

import concurrent.futures
import csv
import dataclasses
import itertools
import multiprocessing
import os

import torch
import torch.nn.functional as F

from .session import Session, milliseconds, run_part

TOLERANCE = {"fp16": 1e-3, "bf16": 6e-3, "tf32": 1e-3}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}
BATCH = 32
PIECE = 8  # candidates per worker: one that breaks the context of its worker spoils the rest of a piece


def keys(arch: int, tiny: bool):
    """(key, image side) of what the published networks run."""
    from lpn_fast.kernels.triton.launch import Key

    if tiny:
        yield Key("forward_1", 16, 32, "fp16", arch), 4
        yield Key("transposed_1", 16, 16, "tf32", arch), 4
        return
    for channels, side in ((256, 64), (64, 28)):
        for role in ("forward_1", "forward_2", "transposed_1", "transposed_2", "gradient_1", "gradient_2"):
            yield Key(role, channels, channels, "fp16", arch), side
    # the gates of the denoisers that ship: products of single pixels
    yield Key("forward_1", 49, 96, "fp16", arch), 256
    yield Key("transposed_1", 96, 49, "fp16", arch), 256
    for channels, side in ((256, 64), (64, 28)):  # where there is a choice; fp16's winners come first, time may end
        for role in ("forward_1", "forward_2", "transposed_1", "transposed_2"):
            yield Key(role, channels, channels, "tf32", arch), side


def candidates(key, tiny: bool):
    """Tile sizes worth trying, the rule's first."""
    from lpn_fast.kernels.triton.launch import Config, config, power_of_two

    yield config(key)
    if tiny:
        return
    gradient = key.role.startswith("gradient")
    depth = 128 if gradient else 32 if key.precision == "tf32" else 64
    wide = (key.c_out, 128) if key.c_out >= 128 else (64, 128) if key.c_out > 64 else (64,)
    for channels, pixels, (warps, stages), tma in itertools.product(
        wide, (32, 64) if gradient else (64, 128, 256), ((8, 3), (4, 3), (8, 4), (4, 4)), (True, False)
    ):
        if pixels * channels > 128 * 256 or (warps == 4 and pixels * channels > 128 * 128):
            continue
        if (tma and (key.arch < 90 or key.c_in % 64)) or (not tma and stages != 3):
            continue
        if pixels == 64 and not (tma or gradient):  # what the copy engine fetches is a row, and rows may be short
            continue
        yield Config(pixels, channels, min(depth, power_of_two(key.c_in)), 32, warps, stages, tma)


def measure(session: Session) -> None:
    from lpn_fast.kernels.triton.interpreter import interpreted, mend

    if interpreted():
        mend()
    arch = 90
    if session.device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        arch = 10 * major + minor
    batch = 1 if session.tiny else BATCH
    wanted = [(key, side, config) for key, side in keys(arch, session.tiny)
              for config in dict.fromkeys(candidates(key, session.tiny))]  # fmt: skip
    agree: dict = {}
    for (key, side, config), error in zip(wanted, _errors(session, wanted), strict=True):
        if isinstance(error, str) or not error <= TOLERANCE[key.precision]:
            said = error if isinstance(error, str) else f"error {error:.1e}"
            session.show(f"{key.role} {key.c_in} {key.precision} {config}: {said}, not admitted"[:200])
        else:
            agree.setdefault((key, side), []).append((config, error))
    winners = {}
    for (key, side), fitting in agree.items():
        best = None
        for config, error in fitting:
            if session.seconds_left < 0:
                break
            try:
                call = _call(key, config, session.device, batch, side)[0]
                call()
                ms, *_ = milliseconds(call, seconds=0.1, rounds=1 if session.tiny else 7)
            except Exception as failure:
                session.show(f"{key.role} {config}: {type(failure).__name__}")
                continue
            if best is None or ms < best[0]:
                best = ms, error, config
        if best is None:
            session.show(f"---- {key.role} {key.c_in} {key.precision}: no time left")
            continue
        winners[key] = best
        _guarded_comparison(session, key, best[0], side)
        flop = _flop(key, batch, side)
        rate = flop / best[0] / 1e9
        session.add(
            key.role, "triton", 1e3 * best[0], "us", precision=key.precision, flop=flop, rel_err=best[1],
            shape=f"{side}x{side}x{key.c_in}", batch=batch, config=dataclasses.asdict(best[2]),
            line=f"{key.role:<14}{key.c_in:>4}  {1e3 * best[0]:9.1f} us {rate:7.1f} TFLOP/s  {best[2]}",
        )  # fmt: skip
    if winners and session.device == "cuda" and not session.tiny:
        source = f"measured {torch.cuda.get_device_name()} {session.commit}"
        session.out.mkdir(parents=True, exist_ok=True)
        rewrite(winners, source, session.out / "table.csv")
        if os.environ.get("LPN_FAST_REWRITE_TABLE") == "1":
            rewrite(winners, source)


def _errors(session: Session, wanted: list) -> list[float | str]:
    """The error of each (key, side, config), or what went wrong; in workers where there is a device."""
    if session.device == "cpu":
        return [_error_or_reason(key, config, "cpu") for key, _, config in wanted]
    found: list[float | str] = ["not compiled in time"] * len(wanted)
    workers = max(1, min((os.cpu_count() or 2) - 2, 14))
    share = 0.6 * session.seconds_left  # the rest is for timing
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    )  # fmt: skip
    pieces = {}
    for first in range(0, len(wanted), PIECE):
        piece = wanted[first : first + PIECE]
        pieces[pool.submit(_errors_of, piece)] = range(first, first + len(piece))
    try:
        for future in concurrent.futures.as_completed(pieces, timeout=share):
            try:
                errors = future.result()
            except Exception as failure:  # the worker died
                errors = [f"{type(failure).__name__}"] * len(pieces[future])
            for index, error in zip(pieces[future], errors, strict=True):
                found[index] = error
    except TimeoutError:
        session.show(f"---- {found.count('not compiled in time')} of {len(found)} candidates were not ready in time")
    finally:
        for process in list(pool._processes.values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)
    return found


def _errors_of(piece: list) -> list[float | str]:
    return [_error_or_reason(key, config, "cuda") for key, _, config in piece]


def _error_or_reason(key, config, device: str) -> float | str:
    try:
        return _error(key, config, device)
    except Exception as failure:  # too much shared memory, a compiler's crash: not a candidate
        return f"{type(failure).__name__}: {failure}".splitlines()[0][:120]


def _guarded_comparison(session: Session, key, ours: float, side: int) -> None:
    try:
        _compare(session, key, ours, side)
    except Exception as failure:  # the winner stands without it
        session.show(f"---- {key.role} by the library: {type(failure).__name__}: {failure}".splitlines()[0][:160])


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
    """Operations on the larger image of `side`; a gradient has two pairs."""
    stride = int(key.role[-1])
    pixels = batch * (side // stride) ** 2
    return 2 * _core(key) ** 2 * key.c_in * key.c_out * pixels * (2 if key.role.startswith("gradient") else 1)


def _core(key) -> int:
    """Side of the core: the published ones are of 3 x 3, the gates of a frame of single pixels."""
    return 3 if key.c_in == key.c_out else 1


def _call(key, config, device: str, batch: int, side: int):
    """(launch, its result NHWC or [k, k, C, C], inputs) at one size; a random correlation."""
    from lpn_fast.kernels.triton.correlate import correlate
    from lpn_fast.kernels.triton.gradient import gradient
    from lpn_fast.kernels.triton.launch import Geometry, tma_fits

    stride, dtype = int(key.role[-1]), DTYPES[key.precision]
    k = _core(key)
    small = (side + 2 * (k // 2) - k) // stride + 1
    transposed = key.role.startswith("transposed")
    if config.tma and not tma_fits(key.c_in, config.depth, dtype.itemsize, 1 if transposed else stride, side, side):
        config = dataclasses.replace(config, tma=False)
    below, above = (key.c_out, key.c_in) if transposed else (key.c_in, key.c_out)
    weight = (torch.rand(k, k, below, above, device=device) / (k * k * below)).to(dtype)
    z = torch.randn(batch, side, side, below, device=device).to(dtype)
    e = torch.randn(batch, small, small, above, device=device).to(dtype)
    geometry = Geometry(k, stride, k // 2)
    if key.role.startswith("gradient"):
        processors = torch.cuda.get_device_properties(0).multi_processor_count if device == "cuda" else 2
        return lambda: gradient([(e, z), (e, z)], geometry, config, key.precision, False, processors), z, e, weight
    other = z if k == 1 else None  # gates read squares, and what goes back to a square is another step
    if transposed:
        out, z = torch.full_like(z, float("nan")), z.abs()
        step = "slope" if other is None else "square_slope"
        call = lambda: correlate(out, e, weight, geometry, step, config, key.precision, True, z=z, beta=10.0)  # noqa: E731
    else:
        out = torch.full_like(e, float("nan"))
        call = lambda: correlate(  # noqa: E731
            out, z, weight, geometry, "forward", config, key.precision, other=other, beta=10.0
        )  # fmt: skip
    return call, z, e, weight


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

    convolution = torch.backends.cudnn.conv
    before = convolution.fp32_precision
    convolution.fp32_precision = "tf32" if key.precision == "tf32" else "ieee"
    try:
        library()
        ms, *_ = milliseconds(library, seconds=0.1, rounds=1 if session.tiny else 7)
    finally:
        convolution.fp32_precision = before
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
        core, stride, padding = weight.double().permute(3, 2, 0, 1), int(key.role[-1]), _core(key) // 2
        square = padding == 0
        if key.role.startswith("gradient"):
            truth = 2 * torch.nn.grad.conv2d_weight(z, core.shape, e, stride, padding).permute(2, 3, 1, 0)
        elif key.role.startswith("transposed"):
            truth = torch.nn.grad.conv2d_input(z.shape, core, e, stride, padding)
            truth = (truth * (2 * z if square else -torch.expm1(-10.0 * z))).permute(0, 2, 3, 1)
        else:
            truth = F.conv2d(z * z if square else z, core, None, stride, padding)
            truth = F.softplus(truth, 10.0, 1e3).permute(0, 2, 3, 1)
        error = ((result - truth).norm() / truth.norm()).item()
        worst = max(worst, float("inf") if error != error else error)
    return worst


if __name__ == "__main__":
    raise SystemExit(run_part(__name__, __doc__, measure))
