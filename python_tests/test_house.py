"""The rooms of the package: every file is in one, and imports run one way, also those inside functions."""

import pytest

from scripts.package_imports import FACE, ROOT, imports, module_graph, modules, room_of

# A room imports those after it. `pipeline` is a file; the face, `__init__` and `__main__`, imports any room lazily.
ROOMS = (
    *("cli", "apps", "measure", "training", "pipeline", "restoration", "models", "weights", "images", "ops"),
    *("backends", "kernels", "diffusion", "core"),
)
FILES = modules()


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
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
            cycle = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(cycle) > 1 or module in graph.get(module, ()):
                found.append(sorted(cycle))

    for module in graph:
        if module not in index:
            visit(module)
    return found


def test_every_file_is_in_a_room():
    assert {room_of(module) for module in FILES} == {*ROOMS, *FACE}
    assert len(list((ROOT / "resshift_fast").glob("*.py"))) <= 8


@pytest.mark.parametrize("module", FILES)
def test_imports_run_one_way(module):
    own = room_of(module)
    if own in FACE:
        return
    below = ROOMS[ROOMS.index(own) :]
    for other in module_graph()[module]:
        assert room_of(other) in below or other == "resshift_fast", f"{module} imports {other}, which is above it"
        assert other != "resshift_fast" or "__version__" in FILES[module].read_text(encoding="utf-8")


def test_there_is_no_cycle():
    graph = {module: others - {"resshift_fast"} for module, others in module_graph().items()}
    assert not cycles(graph)


def test_a_cycle_is_found():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]
    assert cycles({"a": {"a"}}) == [["a"]]


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


def test_a_relative_import_is_an_error():
    with pytest.raises(ValueError, match="line 2: a relative import hides the room"):
        imports("import os\nfrom .core import files\n")
