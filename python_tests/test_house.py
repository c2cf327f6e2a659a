"""The rooms of the package: every file is in one, and imports run one way, also those inside functions."""

import ast
from pathlib import Path

import pytest

import resshift_fast
import resshift_fast.kernels

ROOT = Path(resshift_fast.__file__).parent
KERNELS = Path(next(iter(resshift_fast.kernels.__path__)))
# A room imports those after it. `pipeline` is a file; the face, `__init__` and `__main__`, opens any room when asked.
ROOMS = (
    *("cli", "measure", "training", "pipeline", "restoration", "models", "weights", "images", "ops"),
    *("backends", "kernels", "diffusion", "core"),
)
FACE = ("__init__", "__main__")


def module_of(path: Path) -> str:
    """Dotted name, without ".__init__"."""
    inside = path.is_relative_to(KERNELS)
    parts = path.relative_to(KERNELS.parent if inside else ROOT).with_suffix("").parts
    return ".".join(("resshift_fast", *(("kernels", *parts[1:]) if inside else parts))).removesuffix(".__init__")


FILES = {module_of(path): path for path in sorted([*ROOT.rglob("*.py"), *KERNELS.glob("*.py")])}


def room_of(module: str) -> str:
    """ "ops" for "resshift_fast.ops.checks"; "__init__" for the package itself."""
    return (*module.split("."), "__init__")[1]


def is_typing(node: ast.AST) -> bool:
    """Whether it is `if TYPE_CHECKING:`, whose imports never happen."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def nodes(tree: ast.AST):
    """All of a tree but what only type checkers read."""
    for child in ast.iter_child_nodes(tree):
        if not is_typing(child):
            yield child
            yield from nodes(child)


def imports(source: str) -> set[str]:
    """Modules of the package that a source imports anywhere. A name of a package that is no module is the package."""
    found = set()
    for node in nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names}
    return {name for name in found if name.partition(".")[0] == "resshift_fast"}


GRAPH = {module: imports(path.read_text(encoding="utf-8")) for module, path in FILES.items()}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import one another, by Tarjan's algorithm."""
    index, low, stack, found = {}, {}, [], []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in graph.get(module, ()):
            if other not in index:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == index[module]:
            circle = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(circle) > 1 or module in graph.get(module, ()):
                found.append(sorted(circle))

    for module in graph:
        if module not in index:
            visit(module)
    return found


def test_every_file_is_in_a_room():
    assert {room_of(module) for module in FILES} == {*ROOMS, *FACE}
    assert len(list(ROOT.glob("*.py"))) <= 8


@pytest.mark.parametrize("module", FILES)
def test_imports_run_one_way(module):
    own = room_of(module)
    if own in FACE:
        return
    below = ROOMS[ROOMS.index(own) :]
    for other in GRAPH[module]:
        assert room_of(other) in below or other == "resshift_fast", f"{module} imports {other}, which is above it"
        assert other != "resshift_fast" or "__version__" in FILES[module].read_text(encoding="utf-8")


def test_there_is_no_circle():
    graph = {module: others - {"resshift_fast"} for module, others in GRAPH.items()}
    assert not circles(graph)


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]
    assert circles({"a": {"a"}}) == [["a"]]


def test_imports_are_found_wherever_they_are():
    source = """
from typing import TYPE_CHECKING
import resshift_fast.core.files
if TYPE_CHECKING:
    from resshift_fast.pipeline import Pipeline
def late():
    from resshift_fast.ops import group_norm, checks
    from resshift_fast.images import read
"""
    expected = {"core.files", "ops.group_norm", "ops.checks", "images"}
    assert imports(source) == {f"resshift_fast.{name}" for name in expected}
