"""What the PTX instructions that compute give, on numpy arrays over threads. Any other instruction is a `Fault`."""

import functools
import re

import numpy as np
from ptx_memory import Fault

COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
UNARY = {"ex2": np.exp2, "lg2": np.log2, "sqrt": np.sqrt, "rcp": np.reciprocal, "abs": np.abs, "neg": np.negative,
         "not": lambda x: ~x, "rsqrt": lambda x: 1 / np.sqrt(x)}  # fmt: skip

# what operations may be qualified by without another result than this model's
KNOWN = {"lo", "hi", "wide", "rn", "ftz", "approx", "full"}


@functools.cache
def dtype_of(kind: str) -> np.dtype:
    """u32, s64, f16, b8 or pred; bfloat16 and TF32 have none."""
    return np.dtype(
        np.bool_ if kind == "pred" else f"{'u' if kind[0] == 'b' else kind[0].replace('s', 'i')}{int(kind[1:]) // 8}"
    )


def unknown(one):
    raise Fault(f"an instruction that is not known here: {one.text}")


def arithmetic(one, value) -> np.ndarray:
    """The result of an instruction; value(text, kind) are operands as numbers."""
    op, kind, inputs = one.op[0], one.op[-1], one.operands[1:]
    if op in ("setp", "selp", "cvt"):
        return globals()[f"_{op}"](one, value)
    if not KNOWN.issuperset(one.op[1:-1]):
        unknown(one)
    if op in UNARY:
        return UNARY[op](value(inputs[0], kind))
    if op in ("mul", "mad") and one.op[1] in ("wide", "hi"):
        bits = int(kind[1:])
        if one.op[1] == "hi" and bits == 64:
            unknown(one)
        a, b = (value(text, kind).astype(dtype_of(f"{kind[0]}{2 * bits}")) for text in inputs[:2])
        result = a * b if one.op[1] == "wide" else (a * b >> bits).astype(dtype_of(kind))
        return result + value(inputs[2], f"{kind[0]}{8 * result.dtype.itemsize}") if op == "mad" else result
    if op in ("shl", "shr"):
        x, by = value(inputs[0], kind), value(inputs[1], "u32")
        by = np.minimum(by, 8 * x.dtype.itemsize - 1) if kind[0] == "s" else by
        by = by.astype(x.dtype)
        return np.where(by < 8 * x.dtype.itemsize, x << by if op == "shl" else x >> by, 0).astype(x.dtype)
    if op == "bfe":
        x, start, length = value(inputs[0], kind), int(inputs[1]), int(inputs[2])
        return (x << (32 - start - length)) >> (32 - length)
    if op == "bfi":
        start, length = int(inputs[2]), int(inputs[3])
        mask = np.uint32(((1 << length) - 1) << start)
        return value(inputs[0], "b32") << np.uint32(start) & mask | value(inputs[1], "b32") & ~mask
    if op not in _COMBINE:
        unknown(one)
    return _COMBINE[op](*(value(text, kind) for text in inputs))


def _setp(one, value) -> np.ndarray:
    how, kind = one.op[1], one.op[-1]
    a, b = (value(text, kind) for text in one.operands[1:3])
    if len(one.operands) > 3 or not {"ftz"}.issuperset(one.op[2:-1]):
        unknown(one)
    unordered = np.isnan(a) | np.isnan(b) if a.dtype.kind == "f" else False
    if how in ("num", "nan"):
        return unordered if how == "nan" else ~unordered
    if how in COMPARE:
        result = COMPARE[how](a, b)
        return result & ~unordered if how == "ne" and a.dtype.kind == "f" else result
    if how.removesuffix("u") not in COMPARE:
        unknown(one)
    return COMPARE[how.removesuffix("u")](a, b) | unordered


def _selp(one, value) -> np.ndarray:
    a, b = (value(text, one.op[-1]) for text in one.operands[1:3])
    return np.where(value(one.operands[3], "pred"), a, b)


def _cvt(one, value) -> np.ndarray:
    to, kind = one.op[-2:]
    qualified = set(one.op[1:-2]) - {"ftz"}
    packs = to in ("f16x2", "bf16x2") and kind == "f32" and qualified == {"rn"}
    if not (packs or to == "tf32" or re.fullmatch(r"[usbf]\d+ [usbf]\d+", f"{to} {kind}")):
        unknown(one)
    values = [value(text, kind) for text in one.operands[1:]]
    if packs:
        high, low = (_sixteen(v, to) for v in values)
        return (high << 16) | low
    if to == "tf32" and kind == "f32" and qualified == {"rna"}:  # to nearest, ties away from zero
        bits = values[0].view(np.uint32)
        return np.where(np.isnan(values[0]), bits, (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000))
    floats = to[0] == "f", kind[0] == "f"
    narrowing = floats == (True, True) and int(to[1:]) < int(kind[1:])
    if qualified != ({"rn"} if narrowing or floats == (True, False) else {"rzi"} if floats == (False, True) else set()):
        unknown(one)
    return values[0].astype(dtype_of(to))


def _sixteen(x: np.ndarray, to: str) -> np.ndarray:
    """Bits of float32 numbers in 16, to nearest even."""
    if to == "f16x2":
        return x.astype(np.float16).view(np.uint16).astype(np.uint32)
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint32)


def _truncated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    b = np.where(b == 0, 1, b)
    return (np.sign(a) * np.sign(b) * (np.abs(a.astype(np.int64)) // np.abs(b.astype(np.int64)))).astype(a.dtype)


def _divide(a, b):
    return a / b if a.dtype.kind == "f" else _truncated(a, b) if a.dtype.kind == "i" else a // np.maximum(b, 1)


def _fma(a, b, c):
    return (a.astype(np.float64) * b + c).astype(a.dtype)


_COMBINE = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
    "mad": lambda a, b, c: a * b + c, "fma": _fma,
    "div": _divide, "rem": lambda a, b: a - b * _divide(a, b),
    "min": lambda a, b: np.fmin(a, b) if a.dtype.kind == "f" else np.minimum(a, b),
    "max": lambda a, b: np.fmax(a, b) if a.dtype.kind == "f" else np.maximum(a, b),
    "and": lambda a, b: a & b, "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b,
}  # fmt: skip
