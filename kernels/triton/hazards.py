"""A hazard of Hopper's asynchronous products, read off the machine code of a kernel. Plain Python.

    HGMMA.64x128x16.F32 R24, R96, gdesc[UR8], R24, gsb0     D, A, B: A is in registers R96 to R99 here, or in memory
    WARPGROUP.DEPBAR.LE gsb0, 0x3                           waits until at most three groups of products are under way

Such a product reads A's registers while later instructions run already, so nobody may write to them before a wait
that covers it. Triton 3.6 lets the next iteration of a pipelined loop do so (triton-lang/triton#9433): a race, whose
results are right most of the time.
"""

import re
from collections import deque

PRODUCT = re.compile(r"HGMMA\.\S+ R\d+, (?:R(?P<a>\d+)|\S+),.*?(?P<ends>gsb0)?;")
WAIT = re.compile(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x(?P<pending>[0-9a-f]+)")
WRITE = re.compile(r"(?:@!?U?P\w+ )?(?P<op>[A-Z]\S*) (?:!?U?P[T\d]+, )*R(?P<to>\d+)\b")
LABEL = re.compile(r"\.?(?P<name>L\w+):")
JUMP = re.compile(r"\bBRA(?:\.\w+)*\b.*?\.?(?P<name>LBB\w+|L_\w+)")
A_REGISTERS = 4  # for 64 x 32 bytes, per thread


def register_hazards(sass: str) -> list[str]:
    """The instructions that write to a product's operand before a wait for it: of the code as it stands, and of every
    loop in its next iteration."""
    lines = [line.split("\t")[-1].strip() for line in sass.splitlines()]
    labels = {m["name"]: at for at, line in enumerate(lines) if (m := LABEL.match(line))}
    found = dict.fromkeys(_written_too_early(lines))
    for at, line in enumerate(lines):
        jump = JUMP.search(line)
        if jump and labels.get(jump["name"], at) < at:
            body = lines[labels[jump["name"]] : at]
            found |= dict.fromkeys(_written_too_early(body + body))
    return list(found)


def _written_too_early(lines: list[str]):
    groups: deque[set[int]] = deque()  # registers that products under way read, the oldest group first
    current: set[int] = set()
    for line in lines:
        product, wait = PRODUCT.search(line), WAIT.search(line)
        if product:
            if product["a"]:
                current |= set(range(int(product["a"]), int(product["a"]) + A_REGISTERS))
            if product["ends"]:
                groups.append(current)
                current = set()
        elif wait:
            while len(groups) > int(wait["pending"], 16):
                groups.popleft()
        else:
            written = _written(line)
            if any(written & group for group in (*groups, current)):
                yield line


def _written(line: str) -> set[int]:
    """The registers that an instruction writes."""
    found = WRITE.match(line)
    if not found or "SETP" in found["op"]:
        return set()
    op, first = found["op"], int(found["to"])
    if op.startswith("LDSM"):
        count = int(op[-1]) if op[-1].isdigit() else 1
    else:
        count = 4 if ".128" in op else 2 if ".64" in op or ".WIDE" in op else 1
    return set(range(first, first + count))
