"""Matrix instructions of PTX: which lane holds what, as "Matrix Fragments for mma" of the manual has it."""

import numpy as np
from ptx_arithmetic import unknown

GROUP, PAIR = np.arange(32) // 4, np.arange(32) % 4
SHAPES = {"f16": "m16n8k16", "bf16": "m16n8k16", "tf32": "m16n8k8"}


def transposed(one) -> bool:
    """Whether an ldmatrix transposes its blocks."""
    if one.op[1:4] != ["sync", "aligned", "m8n8"] or {*one.op[4:]} - {"x1", "x2", "x4", "trans"} != {"shared", "b16"}:
        unknown(one)
    return "trans" in one.op


def fragments(rows: np.ndarray, trans: bool) -> np.ndarray:
    """Words [warps, lanes] of one block of 8 x 8, whose rows are given as bytes [warps * 8, 16]."""
    tile = rows.view(np.uint16).reshape(-1, 8, 8)
    tile = tile.transpose(0, 2, 1) if trans else tile
    return np.ascontiguousarray(tile).reshape(-1, 64).view(np.uint32)


def multiplied(one, a: list[np.ndarray], b: list[np.ndarray], c: list[np.ndarray]) -> list[np.ndarray]:
    """d of an mma.sync; a and b are words, c and d float32, [warps, lanes] each."""
    kind = one.op[-3]
    if kind not in SHAPES or one.op[1:] != ["sync", "aligned", SHAPES[kind], "row", "col", "f32", kind, kind, "f32"]:
        unknown(one)
    wide = kind != "tf32"  # two values in a word
    warps, depth = len(a[0]), 16 if wide else 8
    left, right = np.zeros((warps, 16, depth), np.float32), np.zeros((warps, depth, 8), np.float32)
    for number, words in enumerate(a):
        row, block = GROUP + 8 * (number % 2), number // 2
        for k, x in enumerate(_values(words, kind)):
            left[:, row, 8 * block + 2 * PAIR + k if wide else 4 * block + PAIR] = x
    for number, words in enumerate(b):
        for k, x in enumerate(_values(words, kind)):
            right[:, 8 * number + 2 * PAIR + k if wide else 4 * number + PAIR, GROUP] = x
    product = left @ right
    return [product[:, GROUP + 8 * (i // 2), 2 * PAIR + i % 2] + before for i, before in enumerate(c)]


def _values(words: np.ndarray, kind: str) -> list[np.ndarray]:
    if kind == "tf32":
        return [(words & np.uint32(0xFFFFE000)).view(np.float32)]
    if kind == "bf16":
        return [(words << np.uint32(16)).view(np.float32), (words & np.uint32(0xFFFF0000)).view(np.float32)]
    both = np.ascontiguousarray(words).view(np.float16).reshape(*words.shape, 2).astype(np.float32)
    return [both[..., 0], both[..., 1]]
