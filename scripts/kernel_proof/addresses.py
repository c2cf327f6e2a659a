"""Find address computations that may overflow, by interval analysis of a kernel's Triton IR.

Program ids are within the grid's limits, and 32-bit arguments are sizes, from 0 to 2³¹ − 1. The interval of every other
integer follows. A 32-bit product or shift whose interval exceeds 32 bits may overflow, and is reported if it is part of
an address. The remedy is to extend a factor to 64 bits first (`tl.program_id(0).to(tl.int64)`), unless the program id
is a remainder of something small. A sum alone is not reported: its terms are sizes and positions that fit. Masks are
not analysed: they compare the integers that addresses are made of.
"""

import linecache
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from .ir import Op, locations, parse

_AXIS_PROGRAMS = {"x": 2**31 - 1, "y": 65_535, "z": 65_535}
# Operators that return one of their operands, or the same integer in another shape or width.
_SAME = {
    *("arith.extsi", "arith.trunci", "arith.index_cast", "arith.select", "tt.splat", "tt.broadcast"),
    *("tt.expand_dims", "tt.reshape", "tt.trans", "tt.split", "tt.join", "tt.cat", "tt.gather"),
    "tt.unsplat",
}
_SINKS = re.compile(r"tt\.(addptr|advance|make_tensor_ptr|make_tensor_descriptor|(experimental_)?descriptor_\w+)")


@dataclass(frozen=True)
class Interval:
    """Interval of an integer, and the lines of the products that it depends on and that may have overflowed."""

    low: int
    high: int
    wraps: frozenset[str] = frozenset()

    def join(self, other: "Interval") -> "Interval":
        """The smallest interval that contains both."""
        return Interval(min(self.low, other.low), max(self.high, other.high), self.wraps | other.wraps)


def _full(width: int | None, wraps: frozenset[str] = frozenset()) -> Interval:
    if width == 1:
        return Interval(0, 1, wraps)
    bits = (width or 64) - 1
    return Interval(-(2**bits), 2**bits - 1, wraps)


def wrapping_addresses(ttir: str) -> list[str]:
    """One line for each place in a kernel's Triton IR where a 32-bit product in an address may overflow."""
    module, places = parse(ttir), locations(ttir)
    found: set[str] = set()
    for function in module:
        if function.name == "tt.func":
            _Walk(places, found).function(function)
    return [f"a 32-bit product that may overflow is part of an address: {_source(place)}" for place in sorted(found)]


def _source(place: str) -> str:
    """A place as FOLDER/FILE:LINE with the line's text."""
    file, _, line = place.rpartition(":")
    text = linecache.getline(file, int(line)).strip() if line.isdigit() else ""
    return f"{'/'.join(Path(file).parts[-2:])}:{line} `{text}`"


class _Walk:
    def __init__(self, places: dict[str, str], found: set[str]):
        self.places, self.found = places, found
        self.values: dict[str, Interval] = {}

    def function(self, op: Op) -> None:
        for name, kind in re.findall(r"(%[\w#]+): (i\d+)", op.text):
            bits = int(kind[1:])
            self.values[name] = Interval(0, 2 ** (bits - 1) - 1) if bits > 1 else Interval(0, 1)
        self.block(op.regions[0])

    def block(self, ops: Iterable[Op]) -> list[Interval]:
        """Visit a region; returns what its terminator yields."""
        for op in ops:
            if op.name in ("scf.yield", "scf.condition"):
                return [self.value(name) for name in op.operands]
            self.op(op)
        return []

    def value(self, name: str) -> Interval:
        return self.values.get(name) or self.values.get(name.split("#")[0]) or _full(None)

    def op(self, op: Op) -> None:
        if op.name == "scf.for":
            results = self.loop(op)
        elif op.name == "scf.if":
            branches = [self.block(region) for region in op.regions]
            results = [reduce(Interval.join, each) for each in zip(*branches, strict=False)]
        elif op.name == "scf.while":
            self.while_loop(op)
            results = []
        else:
            arguments = [self.value(name) for name in op.operands]
            if _SINKS.fullmatch(op.name):
                # The first operand of `tt.addptr` is the pointer, which is not an integer.
                self.found.update(*(x.wraps for x in arguments))
            chooses = op.name in _REDUCTIONS and all(inner.name in _CHOOSING for inner in op.regions[0])
            results = arguments if chooses else [self.compute(op, arguments)]
        for index, name in enumerate(op.results):
            self.values[name] = results[min(index, len(results) - 1)] if results else _full(op.width)

    def loop(self, op: Op) -> list[Interval]:
        induction, low, high, step = re.search(r"(%\S+) = (%\S+) to (%\S+) step (%\S+)", op.text).groups()
        low, high, step = map(self.value, (low, high, step))
        wraps = low.wraps | high.wraps | step.wraps
        self.values[induction] = Interval(low.low, max(high.high - 1, low.low), wraps)
        carried = re.search(r"iter_args\((.*?)\) ->", op.text)
        pairs = re.findall(r"(%\S+) = (%[\w#]+)", carried[1]) if carried else []
        state = [self.value(init) for _, init in pairs]
        while True:
            self.values.update({name: x for (name, _), x in zip(pairs, state, strict=True)})
            yielded = self.block(op.regions[0])
            joined = [_widened(x, y) for x, y in zip(state, yielded, strict=True)]
            if joined == state:
                return state
            state = joined

    def while_loop(self, op: Op) -> None:
        for region in op.regions:
            names = re.findall(r"(%\S+) = %", op.text) + region.arguments
            self.values.update({name: _full(op.width) for name in names})
            self.block(region)

    def compute(self, op: Op, arguments: list[Interval]) -> Interval:
        wraps = frozenset().union(*(x.wraps for x in arguments))
        if op.name == "arith.constant":
            return _constant(op.text)
        if op.name == "tt.get_program_id":
            return Interval(0, _AXIS_PROGRAMS[op.text.split()[1]] - 1)
        if op.name == "tt.get_num_programs":
            return Interval(1, _AXIS_PROGRAMS[op.text.split()[1]])
        if op.name == "tt.make_range":
            low, high = (int(re.search(rf"{key} = (-?\d+)", op.text)[1]) for key in ("start", "end"))
            return Interval(low, high - 1)
        if op.name in _SAME and arguments:
            values = arguments[1:] if op.name == "arith.select" else arguments[:2]
            joined, limits = reduce(Interval.join, values), _full(op.width)
            fits = limits.low <= joined.low and joined.high <= limits.high
            return joined if fits else _full(op.width, wraps)
        if op.name == "arith.extui":
            return arguments[0] if arguments[0].low >= 0 else _full(op.width, wraps)
        if op.name == "arith.cmpi" or op.name not in _ARITHMETIC:
            # Masks, loaded integers and bit operations: any value, and no longer affected by an operand's overflow.
            carries = op.name in _REDUCTIONS or (op.name.startswith("arith.") and op.name != "arith.cmpi")
            return _full(op.width, wraps if carries else frozenset())
        low, high = _ARITHMETIC[op.name](*arguments)
        exact = Interval(low, high, wraps)
        limits = _full(op.width)
        if op.width == 32 and op.name in _PRODUCTS and (low < limits.low or high > limits.high):
            exact = Interval(low, high, wraps | {self.places.get(op.location, "unknown line")})
        return _clamped(exact, op.width)


def _widened(old: Interval, new: Interval) -> Interval:
    """Widening: bounds of `old` that `new` exceeds become the type's limits, so that loops converge quickly."""
    limits = [limit for limit in (_full(32), _full(64)) if limit.low <= new.low and new.high <= limit.high]
    low = old.low if new.low >= old.low else limits[0].low
    high = old.high if new.high <= old.high else limits[0].high
    return Interval(low, high, old.wraps | new.wraps)


def _clamped(x: Interval, width: int | None) -> Interval:
    """An exact interval clipped to a type, assuming that sums don't overflow."""
    limits = _full(width)
    return Interval(min(max(x.low, limits.low), limits.high), max(min(x.high, limits.high), limits.low), x.wraps)


def _constant(text: str) -> Interval:
    literal = text.removeprefix("arith.constant ").rsplit(" : ", 1)[0]
    if literal in ("true", "dense<true>", "false", "dense<false>"):
        return Interval(0, 1)
    numbers = [int(number) for number in re.findall(r"(?<![\w.])-?\d+(?![\w.])", literal)]
    return Interval(min(numbers), max(numbers)) if numbers else _full(None)


def _corners(function: Callable[[int, int], int]) -> Callable[[Interval, Interval], tuple[int, int]]:
    """Interval of a function that is monotonic in each argument."""

    def limits(a: Interval, b: Interval) -> tuple[int, int]:
        corners = [function(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
        return min(corners), max(corners)

    return limits


def _divided(a: Interval, b: Interval) -> tuple[int, int]:
    """Division by a size, which is at least 1 if the division is defined."""
    if b.high < 1 or b.low < 0:
        bound = max(abs(a.low), abs(a.high))
        return -bound, bound
    return _corners(lambda x, y: abs(x) // y * (1 if x >= 0 else -1))(a, Interval(max(b.low, 1), b.high))


def _remainder(a: Interval, b: Interval) -> tuple[int, int]:
    bound = max(abs(b.low), abs(b.high), 1) - 1
    return max(-bound, min(a.low, 0)), min(bound, max(a.high, 0))


def _bit_and(a: Interval, b: Interval) -> tuple[int, int]:
    bounds = [x.high for x in (a, b) if x.low >= 0]
    return (0, min(bounds)) if bounds else (min(a.low, b.low) * 2, max(a.high, b.high))


def _bit_or(a: Interval, b: Interval) -> tuple[int, int]:
    bound = 2 ** max(x.bit_length() for x in (a.low, a.high, b.low, b.high))
    return (0 if a.low >= 0 and b.low >= 0 else -bound), bound - 1


def _shifts(low: int, high: int) -> tuple[int, int]:
    return min(max(low, 0), 63), min(max(high, 0), 63)


def _shifted_left(a: Interval, b: Interval) -> tuple[int, int]:
    return _corners(lambda x, y: x << y)(a, Interval(*_shifts(b.low, b.high)))


def _shifted_right(a: Interval, b: Interval) -> tuple[int, int]:
    return _corners(lambda x, y: x >> y)(a, Interval(*_shifts(b.low, b.high)))


_ARITHMETIC: dict[str, Callable[[Interval, Interval], tuple[int, int]]] = {
    "arith.addi": _corners(lambda x, y: x + y),
    "arith.subi": _corners(lambda x, y: x - y),
    "arith.muli": _corners(lambda x, y: x * y),
    "arith.divsi": _divided,
    "arith.divui": _divided,
    "arith.ceildivsi": lambda a, b: (_divided(a, b)[0], _divided(a, b)[1] + 1),
    "arith.floordivsi": lambda a, b: (_divided(a, b)[0] - 1, _divided(a, b)[1]),
    "arith.remsi": _remainder,
    "arith.remui": _remainder,
    "arith.minsi": _corners(min),
    "arith.maxsi": _corners(max),
    "arith.minui": _corners(min),
    "arith.maxui": _corners(max),
    "arith.andi": _bit_and,
    "arith.ori": _bit_or,
    "arith.xori": _bit_or,
    "arith.shli": _shifted_left,
    "arith.shrsi": _shifted_right,
    "arith.shrui": _shifted_right,
}
_PRODUCTS = {"arith.muli", "arith.shli"}
_REDUCTIONS = {"tt.reduce", "tt.scan"}
# Operators of a reduction whose results are all among its inputs, such as a minimum and its index.
_CHOOSING = {
    *("arith.cmpi", "arith.cmpf", "arith.select", "arith.ori", "arith.andi", "arith.minsi", "arith.maxsi"),
    *("arith.minui", "arith.maxui", "arith.maximumf", "arith.minimumf", "arith.maxnumf", "arith.minnumf"),
    *("tt.reduce.return", "tt.scan.return"),
}
