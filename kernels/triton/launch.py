"""Which tile a kernel runs with: the launch table, a rule for what is not in it, and the shape of a tile of pixels.

Plain Python, no Triton: importable and testable anywhere.

    table.csv   one row per (role, channels in, channels out, precision, architecture); bench/gpu/tune.py rewrites it
                and admits a row only after its result agreed with float64. `source` says where a row comes from:
                "compiled" rows passed the compile gate (no spills, shared memory in bounds, tensor cores used) but
                were never timed; "measured ..." rows name device and commit.

Roles: forward_S, transposed_S and adjoint_S for stride S (adjoint: transposed, with more operands in the step), image
(a stage that reads x only), project (A^T e per pixel), gradient_S (weights of a core), gradient_image (of a skip).
"""

import csv
import functools
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

TABLE = Path(__file__).with_name("table.csv")
STORAGE_BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2}
DOT_PRECISION = {"fp32": "tf32x3", "tf32": "tf32", "fp16": "ieee", "bf16": "ieee"}  # for float32 operands
# what one block can have, per architecture
SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
MOST_PROJECTED = 64  # columns of A that a step projects onto: more leave parts that cost more than e itself
MIN_SIDE = 16  # least extent of a matrix operand on tensor cores


@dataclass(frozen=True)
class Config:
    """Tile sizes and how a launch is scheduled."""

    pixels: int  # BM = BI BH BW
    channels: int  # BN
    depth: int  # BK: channels of the contraction at a time (gradients: input channels per tile)
    columns: int  # BX: skip columns at a time
    warps: int
    stages: int
    tma: bool = False


@dataclass(frozen=True)
class Key:
    """What a configuration is chosen by."""

    role: str
    c_in: int
    c_out: int
    precision: str
    arch: int  # compute capability times 10: 90 for Hopper


@dataclass(frozen=True)
class Geometry:
    """A square correlation with zero padding; a skip's reads the image resized by 1/resize."""

    kernel: int = 0  # 0: there is none
    stride: int = 1
    padding: int = 0
    resize: int = 1


@functools.cache
def table() -> dict[Key, Config]:
    """The rows of table.csv."""
    with open(TABLE, newline="") as file:
        return {
            Key(r["role"], int(r["c_in"]), int(r["c_out"]), r["precision"], int(r["arch"])): _config(r)
            for r in csv.DictReader(file)
        }


def config(key: Key, pixels: int | None = None, forbid_tma: bool = False) -> Config:
    """The table's row, else the rule's choice; no more pixels per tile than there are (`pixels`)."""
    chosen = table().get(key)
    if chosen is None and key.precision == "bf16":  # the same instructions and sizes
        chosen = table().get(replace(key, precision="fp16"))
    chosen = chosen or rule(key)
    if forbid_tma and chosen.tma:
        chosen = replace(chosen, tma=False)
    if pixels is not None and pixels < chosen.pixels:
        chosen = replace(chosen, pixels=max(MIN_SIDE, power_of_two(pixels)))
    return chosen


def rule(key: Key) -> Config:
    """A safe choice for any shape: up to 128 pixels and 64 channels, pointer loads, little shared memory."""
    wide = STORAGE_BYTES[key.precision] == 4
    gradient = key.role.startswith("gradient")
    channels = min(64, max(MIN_SIDE, power_of_two(key.c_out)))
    depth = min(64 if gradient else 32 if wide else 64, max(MIN_SIDE, power_of_two(key.c_in)))
    steps = key.role.startswith(("transposed", "adjoint"))  # which may project what they made at once
    pixels = 32 if wide and (gradient or steps) else 64 if gradient or wide else 128
    # what holds several tiles at once, or the addresses of a wide gather, spills with few threads
    gathers = key.role == "gradient_image" and key.c_in > 32
    crowded = gradient or (key.role.startswith("adjoint") and not wide) or (key.role == "project" and key.c_out > 64)
    pixels, warps = (16 if wide else 32) if gathers else pixels, 8 if crowded else 4
    return Config(pixels, channels, depth, columns=MIN_SIDE if wide else 32, warps=warps, stages=3)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


@functools.cache
def tile_shape(pixels: int, batch: int, height: int, width: int, tma: bool = False) -> tuple[int, int, int]:
    """(BI, BH, BW), powers of two with product `pixels`, that cover batch x height x width with least waste.

    Of several images only where they are smaller than a tile: positions within a tile are int32 and its reads lie
    close together. Among equals: fewest images, then the box nearest to 1 : 2, whose halo is small and whose rows are
    long. What the copy engine fetches is a piece of one row: that alone lies in shared memory as a product reads it;
    Triton sends other boxes through registers (hazards.py).
    """
    if tma:
        return 1, 1, pixels
    best = None
    for log_w in range(pixels.bit_length()):
        for log_h in range(pixels.bit_length() - log_w):
            bw, bh = 1 << log_w, 1 << log_h
            bi = pixels // (bw * bh)
            if bi * bh * bw != pixels or (bi > 1 and height * width >= pixels):
                continue
            covered = math.prod(-(-n // b) * b for n, b in ((batch, bi), (height, bh), (width, bw)))
            rank = (covered, bi, abs(log_w - log_h - 1))
            if best is None or rank < best[0]:
                best = rank, (bi, bh, bw)
    return best[1]


def rows_fill(pixels: int, width: int) -> bool:
    """Whether tiles of `pixels` in a row, as the copy engine fetches them, waste at most a quarter of them."""
    return 4 * width >= 3 * pixels * -(-width // pixels)


def tma_fits(channels: int, depth: int, element_bytes: int, stride: int, height: int, width: int) -> bool:
    """Whether the copy engine can fetch the tiles: 16-byte rows, whole blocks of channels, even sizes at stride 2."""
    if channels % depth or (channels * element_bytes) % 16 or depth * element_bytes < 16:
        return False
    return stride == 1 or (stride == 2 and height % 2 == 0 and width % 2 == 0)


def splits(tiles: int, steps: int, processors: int) -> int:
    """Into how many parts a sum of `steps` steps is split so that tiles x parts fill `processors` about twice.

    A function of shapes and of the device alone: the order of summation, hence the result, is the same every time.
    """
    wanted = -(-2 * processors // max(1, tiles))
    return max(1, min(wanted, steps // 4, 64))


def _config(row: dict[str, str]) -> Config:
    values = {f.name: int(row[f.name]) for f in fields(Config)}
    return Config(**(values | {"tma": bool(values["tma"])}))
