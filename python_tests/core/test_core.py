"""`core` imports nothing else of the package."""

import ast
from pathlib import Path

import pytest

import resshift_fast.core

FILES = sorted(Path(resshift_fast.core.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_core_imports_nothing_else_of_the_package(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    assert len(FILES) > 3
    assert all(f"{name}.".startswith("resshift_fast.core.") for name in found if name.startswith("resshift_fast"))
