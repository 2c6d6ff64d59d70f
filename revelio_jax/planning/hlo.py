"""Read collectives and XLA's cycle estimates from the text of a program that XLA compiled for a TPU or a GPU.

``cost_analysis()`` cannot be used: it counts -1 seconds for every gather and scatter, and takes the most expensive
branch of a conditional. The text (``Compiled.as_text()``) has XLA's estimate for nearly every instruction. This module
adds the estimates up. It multiplies loops by their trips and takes one branch of every conditional. The text of a
program for a GPU has no estimates, so only bytes and collectives are counted.
"""

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable

# Collectives, and the share of their bytes that each chip of a group of g sends in a ring.
COLLECTIVES: dict[str, Callable[[int], float]] = {
    "all-reduce": lambda g: 2 * (g - 1) / g,
    "all-gather": lambda g: (g - 1) / g,
    "reduce-scatter": lambda g: g - 1,  # the result is 1 / g of the reduced array
    "all-to-all": lambda g: (g - 1) / g,
    "ragged-all-to-all": lambda g: (g - 1) / g,
    "collective-broadcast": lambda g: (g - 1) / g,
    "collective-permute": lambda g: 1,
}
# Instructions that move much data but have no estimate; their time follows from the bytes that they read and write.
MOVES = ("gather", "scatter", "sort")
# Custom calls without an estimate. Their time is at least that of reading their operands.
READS = re.compile(r'custom_call_target="(TopK|PartialReduce\w*)"')

HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\(([^)]*)\)")
ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([^\]]*)\]")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
SCOPE = re.compile(r'op_name="[^"]*?(\w+)/(?:cond|switch)"')  # of a conditional
CALLED = re.compile(r"\b(calls|to_apply|body|condition|branch_computations|true_computation|false_computation)=")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of collective over groups of ``chips``; ``bytes`` is its result on one chip."""

    kind: str
    bytes: int
    chips: int

    @property
    def sent(self) -> float:
        """Bytes that each chip sends."""
        return self.bytes * COLLECTIVES[self.kind](self.chips)


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one run per chip: cycles, bytes of moves without an estimate, and counts of collectives."""

    cycles: int = 0
    moved: int = 0
    collectives: Counter[Collective] = dataclasses.field(default_factory=Counter)

    @property
    def sent(self) -> float:
        """Bytes that a chip sends in all collectives."""
        return sum(times * collective.sent for collective, times in self.collectives.items())

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.cycles + other.cycles,
            self.moved + other.moved,
            Counter(self.collectives) + other.collectives,
        )

    def __mul__(self, times: int) -> "Cost":
        collectives = Counter({key: times * count for key, count in self.collectives.items()})
        return Cost(times * self.cycles, times * self.moved, collectives)


def cost(text: str, devices: int, costly_scope: str = "") -> Cost:
    """Return the cost of a program on ``devices`` devices.

    Take the branch of every conditional with the fewest cycles, or bytes if no cycles are known. Take the one with the
    most in conditionals directly in the scope ``costly_scope`` (``jax.named_scope``). A loop counts once if its number
    of trips cannot be read.
    """
    entry, bodies = _computations(text)

    @functools.cache
    def cost_of(name: str) -> Cost:
        sizes: dict[str, int] = {}
        total = Cost()
        for line in bodies.get(name, ()):
            match = INSTRUCTION.match(line)
            if not match:
                continue
            result, kind, opcode, operands = match.groups()
            sizes[result] = array_bytes(kind)
            called = _called(line)
            cycles = CYCLES.search(line)
            if cycles:
                total += Cost(cycles=int(cycles[1]))
            elif opcode in MOVES:
                total += Cost(moved=2 * (_last(sizes, operands) if opcode == "scatter" else sizes[result]))
            elif opcode == "custom-call" and READS.search(line):
                total += Cost(moved=sum(sizes.get(name, 0) for name in _names(operands)) + sizes[result])
            collective = opcode.removesuffix("-start")
            if collective in COLLECTIVES:
                size = _started_bytes(kind) if opcode.endswith("-start") else sizes[result]
                total += Cost(collectives=Counter({Collective(collective, size, _group(line, devices)): 1}))
            elif opcode == "while":
                total += cost_of(called["body"][0]) * _trips(line, bodies.get(called["condition"][0], ()))
            elif opcode == "conditional":
                branches = [cost_of(b) for key, names in called.items() if key != "to_apply" for b in names]
                scope = SCOPE.search(line)
                pick = max if costly_scope and scope and scope[1] == costly_scope else min
                total += pick(branches, key=lambda cost: (cost.cycles, cost.moved, cost.sent))
            elif "calls" in called or opcode == "call":
                inner = sum((cost_of(n) for names in called.values() for n in names), Cost())
                # The cycles of a fusion are given at the fusion, not inside.
                total += dataclasses.replace(inner, moved=0) if cycles else inner
        return total

    return cost_of(entry)


def array_bytes(kind: str) -> int:
    """Return the bytes of an HLO type, such as f32[8,128]{1,0:T(8,128)} or a tuple (bf16[4], s32[]).

    Padding of layouts is not counted; tokens and opaque values have no bytes.
    """
    return sum(_sizes(kind))


def _sizes(kind: str) -> list[int]:
    sizes = []
    for name, bits, dims in ARRAY.findall(kind):
        count = math.prod(int(dim.strip().removeprefix("<=")) for dim in dims.split(",") if dim.strip())
        sizes.append(-(-count * (8 if name == "pred" else int(bits)) // 8))
    return sizes


def _started_bytes(kind: str) -> int:
    """Return the bytes of the results in the type of an asynchronous start: (operands, results, context)."""
    sizes = [size for size in _sizes(kind) if size > 4]  # the context is scalars
    if not kind.startswith("("):
        return sum(sizes)
    half = len(sizes) // 2
    return max(sum(sizes[:half]), sum(sizes[half:])) if len(sizes) % 2 == 0 else sum(sizes)


def _computations(text: str) -> tuple[str, dict[str, list[str]]]:
    """Return the name of the entry, and the lines of every computation by name."""
    entry, bodies, lines = "", {}, []
    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            lines = bodies[header[2]] = []
            entry = header[2] if header[1] else entry
        else:
            lines.append(re.sub(r"/\*.*?\*/", "", line))  # comments such as /*index=5*/ in long tuples
    return entry, bodies


def _called(line: str) -> dict[str, list[str]]:
    """Return the computations that an instruction calls, by attribute."""
    called = {}
    for match in CALLED.finditer(line):
        names = re.match(r"\{([^}]*)\}|%?([\w.\-]+)", line[match.end() :])
        if names:
            called[match[1]] = [name.strip().removeprefix("%") for name in (names[1] or names[2]).split(",")]
    return called


def _trips(line: str, condition: Iterable[str]) -> int:
    """Return the trips of a loop, from its line or because it counts from 0 to the only constant in its condition."""
    if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(match[1])
    bounds = [int(n) for line in condition for n in re.findall(r"\[\]\S* constant\((\d+)\)", line)]
    return bounds[0] if len(bounds) == 1 else 1


def _group(line: str, devices: int) -> int:
    """Return the number of chips in a group of a collective; all chips if it names no group."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line):
        return int(match[2])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes.get(axis, 1)) for axis in re.findall(r"'(\w+)'", match[2]))
    return devices


def _names(operands: str) -> list[str]:
    return re.findall(r"%([\w.\-]+)", operands)


def _last(sizes: dict[str, int], operands: str) -> int:
    """Return the bytes of the last operand, which holds the updates of a scatter."""
    return sizes.get((_names(operands) or [""])[-1], 0)
