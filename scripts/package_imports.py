"""What the files of the package import of one another, also inside functions; read, not executed."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "resshift_fast"
FACE = ("__init__", "__main__")  # opens any room when asked


@cache
def modules() -> dict[str, Path]:
    """Dotted name, without ".__init__", to file. `kernels/` is inside the package, as it is once installed."""
    found = {}
    for path in sorted([*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "kernels").glob("*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts if parts[0] == PACKAGE else (PACKAGE, *parts))
        found[name.removesuffix(".__init__")] = path
    return found


def room_of(module: str) -> str:
    """ "ops" for "resshift_fast.ops.checks"; "__init__" for the package itself."""
    return (*module.split("."), "__init__")[1]


def imports(source: str) -> set[str]:
    """Modules of the package that a source imports anywhere, but for type checkers.

    A name of a package that is no module is the package.

    Raises:
        ValueError: if an import is relative.
    """
    found = set()
    for node in _nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"line {node.lineno}: a relative import hides the room; write {PACKAGE}. ...")
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules() else node.module for name in names}
    return {name for name in found if name.partition(".")[0] == PACKAGE}


@cache
def module_graph() -> dict[str, set[str]]:
    """Module to the modules that it imports."""
    return {module: imports(path.read_text(encoding="utf-8")) for module, path in modules().items()}


def room_graph() -> dict[str, set[str]]:
    """Room to the other rooms that it imports, the package's face left out."""
    graph: dict[str, set[str]] = {room_of(module): set() for module in modules() if room_of(module) not in FACE}
    for module, others in module_graph().items():
        if (room := room_of(module)) in graph:
            graph[room] |= {room_of(other) for other in others} & graph.keys() - {room}
    return graph


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All of a tree but what is below `if TYPE_CHECKING:`, whose imports never happen."""
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
            yield child
            yield from _nodes(child)
