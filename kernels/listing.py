"""Reads what the compiler made: PTX (from where is loaded, how wide, in a loop or not) and SASS (which instructions).

A kernel that streams weights is right only if the machine code is: 16 bytes a load, each weight once, matrix
instructions where they were meant. So loads are traced back to the pointer argument their address comes from: registers
take over the arguments of what they are computed from, through loops, until nothing changes; a loaded value starts
anew. Left out: anything about time, and predicates (a masked load counts as a load).
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from soloist.kernels.errors import ArtifactError

NOWHERE: frozenset[int] = frozenset()
_ENTRY = re.compile(r"\.visible\s+\.entry\s+([\w$]+)\s*\(([^)]*)\)", re.DOTALL)
_LABEL = re.compile(r"^(\$?[A-Za-z_$][\w$]*):\s*")
_GUARD = re.compile(r"^@!?%\w+\s+")
_REGISTER = re.compile(r"%[a-z]+\d+")
_TYPE = re.compile(r"^[bsuf](\d+)$|^(bf|f)16x2$")
_NO_RESULT = ("st.", "red.", "bar", "bra", "ret", "exit", "cp.", "prefetch", "mbarrier", "fence", "membar", "griddep")
_MATRIX = ("mma.", "wgmma.mma", "tcgen05.mma")


@dataclass(frozen=True)
class Load:
    """One load instruction from global memory.

    Args:
        arguments: positions of the pointer arguments its address is computed from.
        bytes: what one thread gets.
        depth: loops around it.
        direct: into registers; else copied into shared memory without waiting (`cp.async`).
    """

    arguments: frozenset[int]
    bytes: int
    depth: int
    direct: bool


@dataclass(frozen=True)
class Listing:
    """What a PTX text says.

    Args:
        parameters: PTX types of the entry's arguments in order, hidden ones included.
        threads: of one program.
        loads: of global memory, in order of the text.
        matrix: matrix instructions by name.
    """

    entry: str
    version: str
    target: str
    threads: int
    parameters: tuple[str, ...]
    loads: tuple[Load, ...]
    matrix: Counter[str]

    def of(self, argument: int) -> tuple[Load, ...]:
        """Loads whose address comes from this argument."""
        return tuple(load for load in self.loads if argument in load.arguments)


@dataclass(frozen=True)
class _Instruction:
    name: str
    operands: tuple[str, ...]
    depth: int


def read_ptx(text: str) -> Listing:
    """Read a PTX text that Triton wrote, with one entry. Raises ArtifactError."""
    version = re.search(r"^\.version\s+([\d.]+)", text, re.MULTILINE)
    target = re.search(r"^\.target\s+(\w+)", text, re.MULTILINE)
    entry = _ENTRY.search(text)
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", text)
    if not (version and target and entry and threads):
        raise ArtifactError("this is not PTX of a Triton kernel: no version, target, entry or number of threads")
    parameters = re.findall(r"\.param\s+\.(\w+)", entry[2])
    code = list(_instructions(_body(text, entry.end())))
    return Listing(
        entry[1],
        version[1],
        target[1],
        int(threads[1]),
        tuple(parameters),
        tuple(_loads(code, entry[1])),
        Counter(instruction.name for instruction in code if instruction.name.startswith(_MATRIX)),
    )


def _body(text: str, begin: int) -> str:
    """The text between the outermost braces after `begin`, without comments and line marks."""
    text = re.sub(r"//[^\n]*", "", text[begin:])
    text = re.sub(r"^\s*\.(?:loc|file|section|pragma)\b[^\n]*$", "", text, flags=re.MULTILINE)
    first = text.index("{")
    depth = 0
    for place in range(first, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[first + 1 : place]
    raise ArtifactError("this PTX ends in the middle of its entry")


def _instructions(body: str) -> Iterator[_Instruction]:
    """Instructions with the number of loops around each: a loop is a label and the last jump back to it."""
    labels: dict[str, int] = {}
    code: list[tuple[str, str]] = []
    for piece in body.split(";"):
        rest = piece.strip()
        while rest and (rest[0] in "{}" or _LABEL.match(rest)):
            if label := _LABEL.match(rest):
                labels[label[1]] = len(code)
                rest = rest[label.end() :].lstrip()
            else:
                rest = rest[1:].lstrip()
        rest = _GUARD.sub("", rest)
        if rest and not rest.startswith("."):
            name, _, operands = rest.partition(" ") if " " in rest else rest.partition("\t")
            name, _, more = name.partition("\t")
            code.append((name, f"{more} {operands}"))
    loops: dict[int, int] = {}
    for place, (name, operands) in enumerate(code):
        begin = labels.get(operands.split(",")[-1].strip(), place + 1) if name.startswith("bra") else place + 1
        if begin <= place:
            loops[begin] = max(place, loops.get(begin, 0))
    for place, (name, operands) in enumerate(code):
        depth = sum(begin <= place <= end for begin, end in loops.items())
        yield _Instruction(name, tuple(_split(operands)), depth)


def _split(operands: str) -> Iterator[str]:
    """Operands at the commas outside of braces."""
    depth, begin = 0, 0
    for place, sign in enumerate(operands):
        depth += (sign in "{[") - (sign in "}]")
        if sign == "," and depth == 0:
            yield operands[begin:place].strip()
            begin = place + 1
    yield operands[begin:].strip()


def _loads(code: Sequence[_Instruction], entry: str) -> Iterator[Load]:
    origins = _origins(code, entry)
    for instruction in code:
        direct = instruction.name.startswith("ld.global")
        if not direct and not (instruction.name.startswith("cp.async") and ".shared" in instruction.name):
            continue
        address = instruction.operands[1]
        sources = NOWHERE.union(*(origins.get(name, NOWHERE) for name in _REGISTER.findall(address)))
        width = _width(instruction.name) if direct else int(instruction.operands[2], 0)
        yield Load(sources, width, instruction.depth, direct)


def _origins(code: Sequence[_Instruction], entry: str) -> dict[str, frozenset[int]]:
    """For each register the arguments it is computed from."""
    origins: dict[str, frozenset[int]] = {}
    parameter = re.compile(re.escape(entry) + r"_param_(\d+)")
    changed = True
    while changed:
        changed = False
        for instruction in code:
            if instruction.name.startswith(_NO_RESULT) or len(instruction.operands) < 2:
                continue
            result, *rest = instruction.operands
            text = " ".join(rest)
            if instruction.name.startswith("ld.param"):
                named = parameter.search(text)
                sources = frozenset({int(named[1])}) if named else NOWHERE
            elif instruction.name.startswith(("ld.", "atom.")):
                continue  # what was loaded is data, not an address
            else:
                sources = NOWHERE.union(*(origins.get(name, NOWHERE) for name in _REGISTER.findall(text)))
            for name in _REGISTER.findall(result):
                if not sources <= origins.get(name, NOWHERE):
                    origins[name] = origins.get(name, NOWHERE) | sources
                    changed = True
    return origins


def _width(name: str) -> int:
    """Bytes of `ld.global.v4.b32`: 16."""
    count, bits = 1, 0
    for part in name.split("."):
        if re.fullmatch(r"v\d", part):
            count = int(part[1:])
        elif kind := _TYPE.match(part):
            bits = int(kind[1] or 32)
    return count * bits // 8


def read_sass(cubin: Path) -> Counter[str]:
    """Instructions of a cubin by name with its modifiers, `LDG.E.128`: how often each stands in the text."""
    from triton import knobs

    command = [knobs.nvidia.nvdisasm.path, "-c", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", text))
