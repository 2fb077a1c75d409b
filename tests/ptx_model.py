"""Compiled PTX on a model of one block: what nvcc and Triton made of a kernel for sm_80, run without a device.

Threads go in step, an instruction at a time, as numpy arrays over threads. Where a branch divides them, those who are
furthest behind go first, until they meet the others again; who comes to a barrier, a shuffle or a matrix instruction
waits there for the warps, or lanes, that it is for, and if they never come, that is a `Fault`. Matrix instructions
(ptx_matrices) spread and gather their fragments over lanes as the PTX manual says; products of halves, bfloat16 and
TF32 are exact and sums float32. What `cp.async` copies arrives when it is waited for, not before. Reported as `Fault`
besides: an instruction that is not known here, and what ptx_memory says. Not modelled: time, rounding of approximate
functions, blocks side by side, and lanes of a warp out of step where nothing divides them.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import ptx_matrices
import torch
from ptx_arithmetic import arithmetic, dtype_of, unknown
from ptx_memory import Clocks, Fault, Memory, Space

WINDOW = 1 << 44  # of shared memory among generic addresses
WIDTH = {"rs": np.uint16, "r": np.uint32, "f": np.uint32, "rd": np.uint64, "fd": np.uint64, "p": np.bool_}


@dataclass(frozen=True)
class Instruction:
    text: str
    guard: str  # predicate, or nothing
    negated: bool
    op: list[str]  # mul.wide.u32 -> mul, wide, u32
    operands: list[str]

    @property
    def is_for_whole_warps(self) -> bool:
        return self.op[0] in ("shfl", "vote", "mma", "ldmatrix") or self.op[:2] == ["bar", "warp"]


@dataclass
class Kernel:
    code: list[Instruction]
    labels: dict[str, int]  # places in the code
    parameters: dict[str, tuple[int, int]]  # offset and size in bytes
    shared: dict[str, int]  # offsets of variables; what a launch allots comes last
    static_bytes: int  # of shared memory
    scoped: dict[str, np.dtype]  # registers of inline assembly
    reached: set[int] = field(default_factory=set)  # instructions that some thread has carried out

    def missed(self, *operations: str) -> list[str]:
        """Instructions of these kinds, or of all, that no thread has carried out."""
        wanted = [at for at, one in enumerate(self.code) if not operations or one.op[0] in operations]
        return [self.code[at].text for at in wanted if at not in self.reached]


def parse(ptx: str, entry: str = "") -> Kernel:
    """The kernel whose name contains `entry`; the first, if that is nothing."""
    ptx = re.sub(r"//[^\n]*|/\*.*?\*/|\.loc[^\n]*", "", ptx, flags=re.DOTALL)
    found = re.search(rf"\.entry\s+(?:\w*{entry}\w*)\s*\((.*?)\)[^{{]*\n{{(.*?)\n}}", ptx, re.DOTALL)
    if not found:
        raise ValueError(f"no kernel like {entry!r}")
    parameters, end = {}, 0
    for line in re.findall(r"\.param[^\n]*", found[1]):
        align, bits, name, count = re.match(
            r"\.param(?: \.align (\d+))? \.\w(\d+)\b.*?(\w+)(?:\[(\d+)\])?,?\s*$", line
        ).groups()
        align = int(align or int(bits) // 8)
        end = -(-end // align) * align
        parameters[name] = end, int(bits) // 8 * int(count or 1)
        end += parameters[name][1]
    shared, end = {}, 0
    variables = re.findall(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\];", found[2])
    variables += re.findall(r"\.extern \.shared \.align (\d+) \.b8 (\w+)\[()\];", ptx)
    for align, name, count in variables:
        shared[name] = end = -(-end // int(align)) * int(align)
        end += int(count or 0)
    scoped, code, labels = {}, [], {}
    for text in found[2].split(";"):
        text = " ".join(text.split())
        # braces before an instruction are a scope of inline assembly
        while label := re.match(r"[{}]\s*|(\$\w+):\s*", text):
            labels |= {label[1]: len(code)} if label[1] else {}
            text = text[label.end() :]
        if register := re.fullmatch(r"\.reg \.\w(\d+) ([^<]*)", text):
            scoped |= dict.fromkeys(_names(register[2]), np.dtype(f"u{int(register[1]) // 8}"))
        elif text and not text.startswith("."):
            one = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", text)
            operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", one[4])
            operands = [operand.strip() for operand in operands]
            code.append(Instruction(text, one[2] or "", one[1] == "!", one[3].split("."), operands))
    return Kernel(code, labels, parameters, shared, end, scoped)


class Block:
    """One block of threads: its registers, its shared memory, and where its threads are in the code."""

    def __init__(self, kernel: Kernel, program: tuple, grid: tuple, warps: int, shared: int, memory: Memory, given):
        self.kernel, self.memory, self.given = kernel, memory, given  # bytes of the parameters
        self.threads, self.warps = 32 * warps, warps
        self.lane, self.warp = np.arange(self.threads) % 32, np.arange(self.threads) // 32
        ids = {"%tid.x": np.arange(self.threads), "%ntid.x": self.threads, "%laneid": self.lane}
        for axis, index, count in zip("xyz", program, grid, strict=False):
            ids |= {f"%ctaid.{axis}": index, f"%nctaid.{axis}": count}
        self.registers = {name: np.broadcast_to(np.uint32(value), self.threads).copy() for name, value in ids.items()}
        self.clocks = Clocks(warps, int(np.ravel_multi_index(program, grid)))
        content = np.full(kernel.static_bytes + shared, 255, np.uint8)  # NaN, whatever type it is read as
        self.shared = Space(content, "shared memory")
        for space in (self.shared, *memory.spaces):
            space.enter(self.clocks)
        self.arriving = defaultdict(list)  # barrier -> who waits there: (threads, where they go on)
        self.copies = [[[]] for _ in range(warps)]  # per warp: groups of cp.async, the last one open

    # ---- control

    def run(self) -> None:
        places = {0: np.ones(self.threads, bool)}  # instruction -> threads that are there
        stuck: set[int] = set()  # where lanes wait for others of their warp
        while places:
            at = min(places.keys() - stuck, default=None)
            if at is None:
                raise Fault(f"lanes of a warp wait for ones that never come: {self.kernel.code[min(places)].text}")
            here = places.pop(at)
            while here.any() and at not in places:
                one = self.kernel.code[at] if at < len(self.kernel.code) else None
                if one is None or one.op[0] == "ret" and not one.guard:
                    here = np.zeros_like(here)
                    break
                if one.is_for_whole_warps:
                    whole = here.reshape(-1, 32).all(1)[self.warp]
                    if (here & ~whole).any():
                        places[at] = here & ~whole
                        stuck.add(at)
                    here = here & whole
                    if not here.any():
                        break
                active = here & (self.registers[one.guard] != one.negated) if one.guard else here
                if active.any():
                    self.kernel.reached.add(at)
                if one.op[0] == "bra":
                    self._go(places, stuck, self.kernel.labels[one.operands[0]], active)
                    here = here & ~active
                elif one.op[0] == "ret":
                    here = here & ~active
                elif one.op[0] in ("bar", "barrier") and one.op[1] != "warp":
                    for threads, onward in self._barrier(one, active, at + 1):
                        self._go(places, stuck, onward, threads)
                    here = here & ~active
                elif active.any():
                    with np.errstate(all="ignore"):
                        self._step(one, active)
                at += 1
            if here.any():
                self._go(places, stuck, at, here)
        if self.arriving:
            raise Fault("a barrier to which not all come")

    @staticmethod
    def _go(places: dict, stuck: set, at: int, threads: np.ndarray) -> None:
        if threads.any():
            places[at] = places[at] | threads if at in places else threads
            stuck.discard(at)

    def _barrier(self, one: Instruction, active: np.ndarray, onward: int):
        """Threads that may go on, and where."""
        if one.op[1:] not in (["sync"], ["sync", "aligned"], ["cta", "sync"]):
            unknown(one)
        released = []
        numbers = self.value(one.operands[0], "u32")
        for number in np.unique(numbers[active]):
            mine = active & (numbers == number)
            wanted = self.value(one.operands[1], "u32")[mine] if len(one.operands) > 1 else [self.threads]
            self.arriving[number].append((mine, onward))
            arrived = sum(threads for threads, _ in self.arriving[number])
            if arrived.sum() > wanted[0] or (arrived > 1).any():
                raise Fault(f"more threads at a barrier than it is for: {one.text}")
            if arrived.sum() == wanted[0]:
                self.clocks.join(np.unique(self.warp[arrived > 0]))
                released += self.arriving.pop(number)
        return released

    def _step(self, one: Instruction, active: np.ndarray) -> None:
        special = getattr(self, f"_{one.op[0]}", None)
        if special:
            special(one, active)
        else:
            self.put(one.operands[0], arithmetic(one, self.value), active)

    # ---- operands

    def value(self, text: str, kind: str) -> np.ndarray:
        """An operand as numbers of a type like u32, f32 or b64."""
        dtype = dtype_of(kind)
        bits = self.registers.get(text)
        if bits is not None:
            if dtype == np.bool_ or bits.dtype == np.bool_:
                return bits
            return (bits.astype(f"u{dtype.itemsize}") if bits.dtype.itemsize != dtype.itemsize else bits).view(dtype)
        number = self._constant(text)
        if dtype == np.bool_:
            return np.full(self.threads, bool(number))
        bits = np.array(number & (2 ** (8 * dtype.itemsize) - 1), f"u{dtype.itemsize}")
        return np.broadcast_to(bits.view(dtype), self.threads)

    def _constant(self, text: str) -> int:
        for known in (self.kernel.shared, {name: at for name, (at, _) in self.kernel.parameters.items()}):
            if text in known:
                return known[text]
        try:
            return int(text[2:], 16) if text[:2].lower() in ("0f", "0d") else int(text, 0)
        except ValueError:
            raise Fault(f"read before anything was written to it: {text}") from None

    def put(self, name: str, result: np.ndarray, active: np.ndarray) -> None:
        """A result into a register, where threads are active; the sign is kept where the register is wider."""
        if name == "_":
            return
        own = self.kernel.scoped.get(name) or np.dtype(WIDTH[re.match(r"%([a-z]+)", name)[1]])
        result = np.asarray(result)
        if own != np.bool_ and result.dtype.kind == "i":
            result = result.astype(f"i{own.itemsize}").view(own)
        elif own != np.bool_:
            result = result.view(f"u{result.dtype.itemsize}").astype(own)
        if not active.all():
            result = np.where(active, result, self.registers.get(name, np.zeros(1, own)))
        self.registers[name] = result

    def address(self, text: str, active: np.ndarray) -> np.ndarray:
        found = re.fullmatch(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\d+))?\s*\]", text)
        base = self.value(found[1], "u64" if found[1].startswith("%rd") else "u32")
        return (base.astype(np.int64) + int(found[2] or 0))[active]

    # ---- what is no arithmetic

    def _mov(self, one, active) -> None:
        target, source = one.operands
        if target.startswith("{"):
            bits = self.value(source, one.op[-1])
            parts = _names(target)
            for number, name in enumerate(parts):
                self.put(name, bits.view(f"u{bits.dtype.itemsize // len(parts)}")[number :: len(parts)], active)
        elif source.startswith("{"):
            parts = _names(source)
            kind = f"b{8 * dtype_of(one.op[-1]).itemsize // len(parts)}"
            joined = np.stack([self.value(name, kind) for name in parts], 1).reshape(-1).view(dtype_of(one.op[-1]))
            self.put(target, joined, active)
        else:
            self.put(target, self.value(source, one.op[-1]), active)

    def _cvta(self, one, active) -> None:
        x = self.value(one.operands[1], "u64")
        if "shared" in one.op:
            x = x - np.uint64(WINDOW) if "to" in one.op else x + np.uint64(WINDOW)
        self.put(one.operands[0], x, active)

    def _bar(self, one, active) -> None:
        """bar.warp.sync: all lanes are here."""

    def _shfl(self, one, active) -> None:
        x, by = self.value(one.operands[1], "b32"), self.value(one.operands[2], "u32").astype(np.int64)
        if one.op[1] != "sync" or one.op[2] not in ("bfly", "idx") or (self.value(one.operands[3], "u32") != 31).any():
            unknown(one)
        source = self.lane ^ by if one.op[2] == "bfly" else by % 32
        self.put(one.operands[0].split("|")[0], x[self.warp * 32 + source], active)

    def _vote(self, one, active) -> None:
        if one.op[1] != "sync" or one.op[2] not in ("any", "all"):
            unknown(one)
        mine = self.value(one.operands[1].lstrip("!"), "pred") != one.operands[1].startswith("!")
        mine = mine.reshape(-1, 32)
        self.put(one.operands[0], (mine.any(1) if one.op[2] == "any" else mine.all(1))[self.warp], active)

    # ---- memory

    def _ld(self, one, active) -> None:
        names, kind = _names(one.operands[0]), one.op[-1]
        size = dtype_of(kind).itemsize
        found = self._load(one, self.address(one.operands[1], active), size * len(names), active)
        for number, name in enumerate(names):
            whole = np.zeros(self.threads, f"u{size}")
            whole[active] = np.ascontiguousarray(found[:, number * size : (number + 1) * size]).view(f"u{size}")[:, 0]
            self.put(name, whole.view(dtype_of(kind)), active)

    def _st(self, one, active) -> None:
        kind = f"u{dtype_of(one.op[-1]).itemsize}"
        parts = [self.value(name, one.op[-1]).view(kind)[active] for name in _names(one.operands[1])]
        data = np.ascontiguousarray(np.stack(parts, 1)).view(np.uint8)
        space, offsets = self._at(one, self.address(one.operands[0], active))
        space.store(offsets, data, self.warp[active], one.text)

    def _load(self, one, addresses: np.ndarray, size: int, active: np.ndarray) -> np.ndarray:
        """Bytes [accesses, size]."""
        if one.op[1] == "param":
            last = len(self.given) - size
            if addresses.min() < 0 or addresses.max() > last or (addresses % size).any():
                raise Fault(f"an access outside of parameters, or off its alignment: {one.text}")
            return self.given[addresses[:, None] + np.arange(size)]
        space, offsets = self._at(one, addresses)
        return space.load(offsets, size, self.warp[active], one.text)

    def _at(self, one, addresses: np.ndarray) -> tuple[Space, np.ndarray]:
        """(memory, offsets in it) by the state space that an instruction names; none is any."""
        if "shared" in one.op:
            return self.shared, addresses
        if "global" not in one.op and addresses[0] >= WINDOW:
            return self.shared, addresses - WINDOW
        return self.memory.at(addresses, one.text)

    def _cp(self, one, active) -> None:
        warps = np.unique(self.warp[active])
        if one.op[2] in ("commit_group", "wait_group", "wait_all"):
            for groups in (self.copies[warp] for warp in warps):
                groups += [[]] if one.op[2] == "commit_group" else []
                left = 1 + int(one.operands[0]) if one.op[2] == "wait_group" else 0
                while one.op[2] != "commit_group" and len(groups) > left:
                    for arrives in groups.pop(0):
                        arrives()
                groups += [] if groups else [[]]
            return
        if one.op[1] != "async" or one.op[3:5] != ["shared", "global"]:
            unknown(one)
        size = int(one.operands[2], 0)
        wanted = self.value(one.operands[3], "u32")[active] if len(one.operands) > 3 else np.full(active.sum(), size)
        data = np.zeros((int(active.sum()), size), np.uint8)
        some = active.copy()
        some[active] = wanted > 0
        if some.any():
            space, offsets = self.memory.at(self.address(one.operands[1], some), one.text)
            data[wanted > 0] = space.load(offsets, size, self.warp[some], one.text)
        data[np.arange(size) >= wanted[:, None]] = 0
        targets, owners = self.address(one.operands[0], active), self.warp[active]
        for warp in warps:
            mine = owners == warp
            self.copies[warp][-1].append(self._copy(one, targets[mine], data[mine], owners[mine]))

    def _copy(self, one, targets: np.ndarray, data: np.ndarray, owners: np.ndarray):
        """Begins a copy of one warp; what is returned ends it."""
        places = self.shared.check(targets, data.shape[1], one.text)
        # it may arrive at any time from now on: whom it would meet now is met
        self.shared.store(targets, np.full_like(data, 255), owners, one.text)
        self.shared.pending[places] = True

        def arrives():
            self.shared.pending[places] = False
            self.shared.store(targets, data, owners, one.text)

        return arrives

    # ---- matrices

    def _ldmatrix(self, one, active) -> None:
        warps = np.unique(self.warp[active])
        addresses = self.address(one.operands[1], active).reshape(len(warps), 32)
        trans = ptx_matrices.transposed(one)
        for number, name in enumerate(_names(one.operands[0])):
            rows = addresses[:, 8 * number : 8 * number + 8].reshape(-1)
            found = self.shared.load(rows, 16, np.repeat(warps, 8), one.text)
            words = np.zeros((self.warps, 32), np.uint32)
            words[warps] = ptx_matrices.fragments(found, trans).reshape(-1, 32)
            self.put(name, words.reshape(-1), active)

    def _mma(self, one, active) -> None:
        d, a, b, c = map(_names, one.operands)

        def lanes(names: list[str], kind: str) -> list[np.ndarray]:
            return [self.value(name, kind).reshape(-1, 32) for name in names]

        results = ptx_matrices.multiplied(one, lanes(a, "b32"), lanes(b, "b32"), lanes(c, "f32"))
        for name, result in zip(d, results, strict=True):
            self.put(name, np.ascontiguousarray(result).reshape(-1), active)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.strip("{} ").split(",")]


def launch(ptx: str, shared: int, warps: int, grid: tuple[int, ...], arguments: list, entry="", memory=None) -> Kernel:
    """Run all blocks of a kernel, which is returned.

    Arguments are tensors on the CPU, which are read and written, numbers, or the bytes of a struct, in which addresses
    are `memory`'s.
    """
    kernel, memory = parse(ptx, entry), memory or Memory()
    given = np.zeros(max(map(sum, kernel.parameters.values())), np.uint8)
    for (at, size), argument in zip(kernel.parameters.values(), arguments, strict=True):
        if isinstance(argument, torch.Tensor):
            argument = memory.address_of(argument)
        if isinstance(argument, float):
            argument = np.float32(argument).tobytes()
        elif not isinstance(argument, bytes):
            argument = int(argument).to_bytes(size, "little", signed=argument < 0)
        if len(argument) != size:
            raise ValueError(f"a parameter has {size} bytes, got {len(argument)}")
        given[at : at + size] = np.frombuffer(argument, np.uint8)
    memory.begin()
    for program in np.ndindex(*grid):
        Block(kernel, program, grid, warps, shared, memory, given).run()
    return kernel
