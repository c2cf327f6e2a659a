"""A reader of Triton IR as text: nested operators with their operands, width of the result, and place in the source."""

import re
from dataclasses import dataclass, field

_LOCATION = re.compile(r" loc\((#\w+|[^()]*(?:\([^()]*\))*[^()]*)\)$")
_NAME = re.compile(r'"?([a-z_]\w*(?:\.\w+)+)"?')


@dataclass
class Region:
    """A region of an operator: its blocks' arguments, and operators in order."""

    arguments: list[str] = field(default_factory=list)
    ops: list["Op"] = field(default_factory=list)

    def __iter__(self):
        return iter(self.ops)


@dataclass
class Op:
    """One operator.

    Args:
        name: with its dialect, "arith.muli".
        text: the line without results and location.
        results, operands: names of SSA values.
        width: bits of the (elements of the) result, None if it is not an integer.
        location: of the source, a key of `locations`.
    """

    name: str
    text: str
    results: list[str]
    operands: list[str]
    width: int | None = None
    location: str = ""
    regions: list[Region] = field(default_factory=list)


def parse(text: str) -> list[Op]:
    """The operators at the top level of a module, usually functions."""
    top = Region()
    open_ops: list[Op] = []
    for line in map(str.strip, text.splitlines()):
        region = open_ops[-1].regions[-1] if open_ops else top
        if not line or line.startswith(("#", "//", "module", "{-#", "#-}")):
            continue
        if line.startswith("^"):
            region.arguments += re.findall(r"(%\w+):", line)
        elif line.startswith("}"):
            if not open_ops:
                continue  # of the module
            if line.endswith("{"):
                open_ops[-1].regions.append(Region())
            else:
                _finish(open_ops.pop(), line[1:])
        else:
            op = _op(line)
            region.ops.append(op)
            if line.endswith("{"):
                op.regions.append(Region())
                open_ops.append(op)
            else:
                _finish(op, line)
    return top.ops


def _op(line: str) -> Op:
    results, separator, text = line.partition(" = ")
    if not separator or not re.fullmatch(r"%\w+(:\d+)?(, %\w+(:\d+)?)*", results):
        results, text = "", line
    text = _LOCATION.sub("", text)
    name = _NAME.search(text)
    head = text.split(" : ", 1)[0]
    operands = re.findall(r"%\w+(?:#\d+)?", head)
    return Op(name[1] if name else "", text, _names(results), operands)


def _names(results: str) -> list[str]:
    """`%a:2` stands for %a#0 and %a#1."""
    names = []
    for name, count in re.findall(r"(%\w+)(?::(\d+))?", results):
        names += [f"{name}#{index}" for index in range(int(count))] if count else [name]
    return names


def _finish(op: Op, end: str) -> None:
    """Take the location and the type of the result from the end of the operator's (last) line."""
    if location := _LOCATION.search(end):
        op.location = location[1]
    types = _LOCATION.sub("", end).rsplit(" : ", 1)[-1]
    types = re.split(r" -> | to ", types)[-1] if " -> " in types or " to " in types else types.split(", ")[-1]
    if op.name == "scf.for":
        types = op.text.rsplit(" : ", 1)[-1]
    if width := re.search(r"(?:x|\b)i(\d+)\b", types):
        op.width = int(width[1])


def locations(text: str) -> dict[str, str]:
    """Alias of a location to "file.py:12", the innermost call's; "" if there is none."""
    definitions = dict(re.findall(r"^(#loc\w*) = loc\((.*)\)$", text, re.MULTILINE))
    known: dict[str, str] = {}

    def resolve(name: str) -> str:
        if name not in known:
            definition = definitions.get(name, name)
            if place := re.search(r'"([^"]*)":(\d+)', definition):
                known[name] = f"{place[1]}:{place[2]}"
            else:
                known[name] = next(filter(None, map(resolve, re.findall(r"#loc\w*", definition))), "")
        return known[name]

    return {name: resolve(name) for name in definitions}
