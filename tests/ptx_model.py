"""Compiled PTX on a model of one block: what Triton made of a kernel for sm_80, run without a device.

All threads of a block go in step, an instruction at a time, as numpy arrays over threads; branches must be taken by all
of them alike, which is how Triton's are. Matrix instructions spread and gather their fragments over lanes as the PTX
manual says, products of halves and of TF32 are exact and sums float32. Reported as `Fault`: an access outside of every
allocation or off its alignment, a branch that divides a block, an instruction that is not known here, and two warps at
one byte of shared memory between barriers of which one writes another value. Not modelled: time, copies that are still
under way (they are there at once), rounding of approximate functions, several blocks at once.
"""

import re
from dataclasses import dataclass, field

import numpy as np
import torch

BASE, GAP = 1 << 20, 1 << 12  # of addresses; bytes between two allocations, which nobody may touch
WIDTH = {"rs": np.uint16, "r": np.uint32, "rd": np.uint64, "p": np.bool_}
COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
UNARY = {"ex2": np.exp2, "lg2": np.log2, "sqrt": np.sqrt, "rcp": np.reciprocal, "abs": np.abs, "neg": np.negative,
         "rsqrt": lambda x: 1 / np.sqrt(x)}  # fmt: skip

# what operations may be qualified by without another result than this model's
KNOWN = {"lo", "hi", "wide", "rn", "ftz", "approx", "full", "sync", "bfly", "idx"}


class Fault(Exception):
    """What a device would not have stood, or answered with another result."""


@dataclass(frozen=True)
class Instruction:
    text: str
    guard: str  # predicate, or nothing
    negated: bool
    op: list[str]  # mul.wide.u32 -> mul, wide, u32
    operands: list[str]


@dataclass
class Memory:
    """Allocations at addresses of their own."""

    bases: list[int] = field(default_factory=list)
    contents: list[np.ndarray] = field(default_factory=list)  # bytes

    def add(self, content: np.ndarray) -> int:
        end = self.bases[-1] + len(self.contents[-1]) if self.bases else BASE
        self.bases.append(-(-(end + GAP) // 256) * 256)
        self.contents.append(content)
        return self.bases[-1]

    def at(self, addresses: np.ndarray, size: int, what: str) -> tuple[np.ndarray, np.ndarray]:
        """(the allocation, offsets in it) of accesses, which all go to one."""
        which = int(np.searchsorted(self.bases, addresses[0], "right")) - 1
        offsets = addresses.astype(np.int64) - (self.bases[which] if which >= 0 else 0)
        if which < 0 or offsets.min() < 0 or offsets.max() + size > len(self.contents[which]):
            raise Fault(f"an access outside of what is allocated: {what}")
        if (addresses % size).any():
            raise Fault(f"an access off its alignment: {what}")
        return self.contents[which], offsets


def parse(ptx: str) -> tuple[list[Instruction], dict[str, int]]:
    """Instructions, and places of labels among them."""
    code, labels = [], {}
    body = ptx[ptx.index("\n{\n") :]
    for line in body[: body.index("\n}\n")].splitlines():
        text = line.split("//")[0].strip()
        if text.endswith(":"):
            labels[text[:-1]] = len(code)
        found = re.fullmatch(r"(?:@(!?)(%p\d+)\s+)?([a-z][\w.]*)\s*(.*);", text)
        if found:
            operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", found[4])
            operands = [operand.strip() for operand in operands]
            code.append(Instruction(text, found[2] or "", found[1] == "!", found[3].split("."), operands))
    return code, labels


class Block:
    """One block of threads: its registers and its shared memory."""

    def __init__(self, program: tuple, grid: tuple, threads: int, shared: int, memory: Memory, arguments: dict):
        self.threads, self.memory, self.arguments = threads, memory, arguments
        self.lane, self.warp = np.arange(threads) % 32, np.arange(threads) // 32
        ids = {"%tid.x": np.arange(threads), "%ntid.x": threads}
        for axis, index, count in zip("xyz", program, grid, strict=False):
            ids |= {f"%ctaid.{axis}": index, f"%nctaid.{axis}": count}
        self.registers = {name: np.broadcast_to(np.uint32(value), threads).copy() for name, value in ids.items()}
        self.shared = np.full(shared, 255, np.uint8)  # NaN, whatever type it is read as
        self.epoch = 0
        # per byte: epoch and warp of the last writing and reading; -2: several warps have read
        self.written, self.writer, self.read, self.reader = (np.full(shared, -1) for _ in range(4))

    def run(self, code: list[Instruction], labels: dict[str, int]) -> None:
        at = 0
        while at < len(code):
            one = code[at]
            at += 1
            active = np.ones(self.threads, bool)
            if one.guard:
                active = self.registers[one.guard] != one.negated
            if one.op[0] == "bra":
                if active.any():
                    if not active.all():
                        raise Fault(f"a branch that divides the block: {one.text}")
                    at = labels[one.operands[0]]
            elif one.op[0] == "ret":
                return
            elif active.any():
                with np.errstate(all="ignore"):
                    getattr(self, f"_{one.op[0]}", self._arithmetic)(one, active)

    # ---- operands

    def value(self, text: str, kind: str) -> np.ndarray:
        """An operand as numbers of a type like u32, f32 or b64."""
        dtype = _dtype(kind)
        if text.startswith("%"):
            bits = self.registers[text]
            if dtype == np.bool_ or bits.dtype == np.bool_:
                return bits
            unsigned = bits.astype(f"u{dtype.itemsize}") if bits.dtype.itemsize != dtype.itemsize else bits
            return unsigned.view(dtype)
        number = int(text[2:], 16) if text.startswith("0f") else 0 if text == "global_smem" else int(text, 0)
        if dtype == np.bool_:
            return np.full(self.threads, bool(number))
        bits = np.array(number & (2 ** (8 * dtype.itemsize) - 1), f"u{dtype.itemsize}")
        return np.broadcast_to(bits.view(dtype), self.threads)

    def put(self, name: str, result: np.ndarray, active: np.ndarray) -> None:
        """A result into a register, where threads are active; the sign is kept where the register is wider."""
        own = np.dtype(WIDTH[re.match(r"%([a-z]+)", name)[1]])
        result = np.asarray(result)
        if own != np.bool_ and result.dtype.kind == "i":
            result = result.astype(f"i{own.itemsize}").view(own)
        elif own != np.bool_:
            result = result.view(f"u{result.dtype.itemsize}").astype(own)
        before = self.registers.get(name)
        self.registers[name] = result if active.all() else np.where(active, result, 0 if before is None else before)

    def address(self, text: str, active: np.ndarray) -> np.ndarray:
        found = re.fullmatch(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\d+))?\s*\]", text)
        base = self.value(found[1], "u64" if found[1].startswith("%rd") else "u32")
        return (base.astype(np.int64) + int(found[2] or 0))[active]

    # ---- arithmetic

    def _arithmetic(self, one: Instruction, active: np.ndarray) -> None:
        op, kind, inputs = one.op[0], one.op[-1], one.operands[1:]
        if op in UNARY:
            (x,) = (self.value(text, kind) for text in inputs)
            self.put(one.operands[0], UNARY[op](x), active)
            return
        if not KNOWN.issuperset(one.op[1:-1]):
            self._unknown(one)
        if op in ("mul", "mad") and one.op[1] in ("wide", "hi"):
            bits = int(kind[1:])
            a, b = (self.value(text, kind).astype(_dtype(f"{kind[0]}{2 * bits}")) for text in inputs[:2])
            result = a * b if one.op[1] == "wide" else (a * b >> bits).astype(_dtype(kind))
            if op == "mad":
                result = result + self.value(inputs[2], f"{kind[0]}{8 * result.dtype.itemsize}")
        elif op in ("shl", "shr"):
            x, by = self.value(inputs[0], kind), self.value(inputs[1], "u32")
            by = np.minimum(by, 8 * x.dtype.itemsize - 1).astype(x.dtype) if kind[0] == "s" else by.astype(x.dtype)
            result = np.where(by < 8 * x.dtype.itemsize, x << by if op == "shl" else x >> by, 0).astype(x.dtype)
        elif op == "bfe":
            x, start, length = self.value(inputs[0], kind), int(inputs[1]), int(inputs[2])
            result = (x << (32 - start - length)) >> (32 - length)
        else:
            values = [self.value(text, kind) for text in inputs]
            result = _COMBINE[op](*values) if op in _COMBINE else self._unknown(one)
        self.put(one.operands[0], result, active)

    def _unknown(self, one: Instruction):
        raise Fault(f"an instruction that is not known here: {one.text}")

    def _mov(self, one, active) -> None:
        target, source = one.operands
        if target.startswith("{"):
            bits = self.value(source, one.op[-1])
            parts = _names(target)
            for number, name in enumerate(parts):
                self.put(name, bits.view(f"u{bits.dtype.itemsize // len(parts)}")[number :: len(parts)], active)
        elif source.startswith("{"):
            parts = [self.registers[name] for name in _names(source)]
            joined = np.stack(parts, 1).reshape(-1).view(_dtype(one.op[-1]))
            self.put(target, joined, active)
        else:
            self.put(target, self.value(source, one.op[-1]), active)

    def _setp(self, one, active) -> None:
        a, b = (self.value(text, one.op[-1]) for text in one.operands[1:])
        if one.op[1] in ("num", "nan"):
            either = np.isnan(a) | np.isnan(b)
            result = either if one.op[1] == "nan" else ~either
        else:
            result = COMPARE[one.op[1].removesuffix("u")](a, b)
            result = result | np.isnan(a) | np.isnan(b) if one.op[1] in ("equ", "neu", "ltu", "gtu") else result
        self.put(one.operands[0], result, active)

    def _selp(self, one, active) -> None:
        a, b = (self.value(text, one.op[-1]) for text in one.operands[1:3])
        self.put(one.operands[0], np.where(self.registers[one.operands[3]], a, b), active)

    def _cvt(self, one, active) -> None:
        to, kind = one.op[-2:]
        values = [self.value(text, kind) for text in one.operands[1:]]
        if to == "f16x2":
            high, low = (v.astype(np.float16).view(np.uint16).astype(np.uint32) for v in values)
            self.put(one.operands[0], (high << 16) | low, active)
        elif to == "tf32":  # to nearest, ties away from zero
            self.put(one.operands[0], (values[0].view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000), active)
        else:
            self.put(one.operands[0], values[0].astype(_dtype(to)), active)

    def _bar(self, one, active) -> None:
        self.epoch += 1

    def _shfl(self, one, active) -> None:
        x, by = self.value(one.operands[1], "b32"), self.value(one.operands[2], "u32").astype(np.int64)
        source = {"bfly": self.lane ^ by, "idx": by % 32}[one.op[2]]
        self.put(one.operands[0], x[self.warp * 32 + source], active)

    # ---- memory

    def _ld(self, one, active) -> None:
        kind = one.op[-1]
        if one.op[1] == "param":
            number = self.arguments[one.operands[1].strip("[]")]
            self.put(one.operands[0], np.broadcast_to(np.asarray(number).astype(_dtype(kind)), self.threads), active)
            return
        names, size = _names(one.operands[0]), _dtype(kind).itemsize
        found = self._load(one, self.address(one.operands[1], active), size * len(names), active)
        for number, name in enumerate(names):
            whole = np.zeros(self.threads, f"u{size}")
            whole[active] = np.ascontiguousarray(found[:, number * size : (number + 1) * size]).view(f"u{size}")[:, 0]
            self.put(name, whole, active)

    def _st(self, one, active) -> None:
        kind = f"u{_dtype(one.op[-1]).itemsize}"
        parts = [self.value(name, one.op[-1]).view(kind)[active] for name in _names(one.operands[1])]
        data = np.ascontiguousarray(np.stack(parts, 1)).view(np.uint8)
        self._store(one, self.address(one.operands[0], active), data, active)

    def _cp(self, one, active) -> None:
        if one.op[2] in ("commit_group", "wait_group", "wait_all"):
            return
        size = int(one.operands[2], 0)
        wanted = self.value(one.operands[3], "u32")[active] if len(one.operands) > 3 else np.full(active.sum(), size)
        data = np.zeros((int(active.sum()), size), np.uint8)
        some = active.copy()
        some[active] = wanted > 0
        if some.any():
            data[wanted > 0] = self._global(one, self.address(one.operands[1], some), size)
        data[np.arange(size) >= wanted[:, None]] = 0
        self._store(one, self.address(one.operands[0], active), data, active, space="shared")

    def _global(self, one, addresses: np.ndarray, size: int) -> np.ndarray:
        content, offsets = self.memory.at(addresses, size, one.text)
        return content[offsets[:, None] + np.arange(size)]

    def _load(self, one, addresses, size: int, active) -> np.ndarray:
        """Bytes [threads, size]."""
        if one.op[1] == "global":
            return self._global(one, addresses, size)
        return self._shared_at(one, addresses, size, self.warp[active])

    def _shared_at(self, one, addresses, size: int, warps: np.ndarray) -> np.ndarray:
        if addresses.min() < 0 or addresses.max() + size > len(self.shared) or (addresses % size).any():
            raise Fault(f"an access outside of shared memory, or off its alignment: {one.text}")
        at = addresses[:, None] + np.arange(size)
        if ((self.written[at] == self.epoch) & (self.writer[at] != warps[:, None])).any():
            raise Fault(f"read without a barrier after another warp's write: {one.text}")
        fresh = self.read[at] != self.epoch
        others = ~fresh & (self.reader[at] != warps[:, None])
        self.read[at] = self.epoch
        self.reader[at] = np.where(others, -2, warps[:, None])
        for warp in np.unique(warps):  # readers within this instruction
            self.reader[np.intersect1d(at[warps == warp], at[warps != warp])] = -2
        return self.shared[at]

    def _store(self, one, addresses, data: np.ndarray, active, space: str = "") -> None:
        size, warps = data.shape[1], self.warp[active]
        if (space or one.op[1]) == "global":
            content, offsets = self.memory.at(addresses, size, one.text)
            content[offsets[:, None] + np.arange(size)] = data
            return
        if addresses.min() < 0 or addresses.max() + size > len(self.shared) or (addresses % size).any():
            raise Fault(f"an access outside of shared memory, or off its alignment: {one.text}")
        at = addresses[:, None] + np.arange(size)
        changes = self.shared[at] != data
        theirs = (self.written[at] == self.epoch) & (self.writer[at] != warps[:, None])
        theirs |= (self.read[at] == self.epoch) & (self.reader[at] != warps[:, None])
        if (theirs & changes).any():
            raise Fault(f"written without a barrier after another warp's access: {one.text}")
        self.shared[at], self.written[at], self.writer[at] = data, self.epoch, warps[:, None]

    # ---- matrices

    def _ldmatrix(self, one, active) -> None:
        names = _names(one.operands[0])
        addresses = self.address(one.operands[1], active).reshape(-1, 32)  # [warps, lanes]
        for number, name in enumerate(names):
            rows = addresses[:, 8 * number : 8 * number + 8]
            warps = np.repeat(np.arange(len(rows)), 8)
            tile = self._shared_at(one, rows.reshape(-1), 16, warps).view(np.uint16).reshape(-1, 8, 8)
            tile = tile.transpose(0, 2, 1) if "trans" in one.op else tile
            self.put(name, np.ascontiguousarray(tile).reshape(-1, 64).view(np.uint32).reshape(-1), active)

    def _mma(self, one, active) -> None:
        d, a, b, c = map(_names, one.operands)
        group, pair = np.arange(32) // 4, np.arange(32) % 4
        warps = self.threads // 32

        def lanes(name: str) -> np.ndarray:
            return self.registers[name].reshape(warps, 32)

        half = one.op[-3] == "f16"
        depth = 16 if half else 8
        left, right = np.zeros((warps, 16, depth), np.float32), np.zeros((warps, depth, 8), np.float32)
        for number, name in enumerate(a):
            row, block = group + 8 * (number % 2), number // 2
            if half:
                for k, x in enumerate(_halves(lanes(name))):
                    left[:, row, 8 * block + 2 * pair + k] = x
            else:
                left[:, row, 4 * block + pair] = _tf32(lanes(name))
        for number, name in enumerate(b):
            if half:
                for k, x in enumerate(_halves(lanes(name))):
                    right[:, 8 * number + 2 * pair + k, group] = x
            else:
                right[:, 4 * number + pair, group] = _tf32(lanes(name))
        product = left @ right
        for number, (name, before) in enumerate(zip(d, c, strict=True)):
            result = product[:, group + 8 * (number // 2), 2 * pair + number % 2]
            added = self.value(before, "f32").reshape(warps, 32)
            self.put(name, np.ascontiguousarray(result + added).reshape(-1), active)


def _truncated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    b = np.where(b == 0, 1, b)
    return (np.sign(a) * np.sign(b) * (np.abs(a.astype(np.int64)) // np.abs(b.astype(np.int64)))).astype(a.dtype)


def _divide(a, b):
    return a / b if a.dtype.kind == "f" else _truncated(a, b) if a.dtype.kind == "i" else a // np.maximum(b, 1)


_COMBINE = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
    "mad": lambda a, b, c: a * b + c,
    "fma": lambda a, b, c: (a.astype(np.float64) * b + c).astype(np.float32),
    "div": _divide, "rem": lambda a, b: a - b * _divide(a, b),
    "min": lambda a, b: np.fmin(a, b) if a.dtype.kind == "f" else np.minimum(a, b),
    "max": lambda a, b: np.fmax(a, b) if a.dtype.kind == "f" else np.maximum(a, b),
    "and": lambda a, b: a & b, "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b, "not": lambda a: ~a,
}  # fmt: skip


def _dtype(kind: str) -> np.dtype:
    return np.dtype(
        np.bool_ if kind == "pred" else f"{'u' if kind[0] == 'b' else kind[0].replace('s', 'i')}{int(kind[1:]) // 8}"
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.strip("{} ").split(",")]


def _halves(bits: np.ndarray) -> list[np.ndarray]:
    both = np.ascontiguousarray(bits).view(np.float16).reshape(*bits.shape, 2).astype(np.float32)
    return [both[..., 0], both[..., 1]]


def _tf32(bits: np.ndarray) -> np.ndarray:
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def launch(ptx: str, shared: int, warps: int, grid: tuple[int, ...], arguments: list) -> None:
    """Run all blocks; tensors among the arguments, on the CPU, are read and written."""
    code, labels = parse(ptx)
    names = re.findall(r"\.param [^\n]*?(\w+_param_\d+)", ptx)
    memory, placed, bound = Memory(), {}, {}
    for name, argument in zip(names, [*arguments, 0, 0], strict=True):  # two of scratch memory that is not there
        if isinstance(argument, torch.Tensor):
            storage = argument.untyped_storage()
            if storage.data_ptr() not in placed:
                content = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
                placed[storage.data_ptr()] = memory.add(content)
            base = placed[storage.data_ptr()]
            argument = np.uint64(base + argument.storage_offset() * argument.element_size())
        bound[name] = np.float32(argument).view(np.uint32) if isinstance(argument, float) else argument
    for program in np.ndindex(*grid):
        Block(program, grid, 32 * warps, shared, memory, bound).run(code, labels)
