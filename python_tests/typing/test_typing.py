"""What type checkers are shown: the names of the package, and the README's examples."""

import ast
import sys
from pathlib import Path

import pytest

import resshift_fast

ROOT = Path(__file__).resolve().parents[2]
FACE = Path(resshift_fast.__file__)


def typed_names() -> set[str]:
    """What the package imports for type checkers alone."""
    (block,) = (
        n for n in ast.parse(FACE.read_text("utf-8")).body if isinstance(n, ast.If) and "not" not in ast.unparse(n.test)
    )
    return {alias.asname or alias.name for node in block.body for alias in node.names}


def test_type_checkers_see_every_public_name():
    assert typed_names() == set(resshift_fast.__all__) - {"__version__"}


def test_the_package_says_that_it_has_types():
    assert (FACE.parent / "py.typed").is_file()


@pytest.fixture
def check_types(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import check_types

    yield check_types
    del sys.modules["check_types"]


def test_only_the_python_blocks_of_a_page_are_examples(check_types):
    page = "a\n```python\nx = 1\ny = 2\n```\n```\nrestore x\n```\n    z = 3\n```python\nw = 4\n```\n"
    assert check_types.examples(page) == ["x = 1\ny = 2\n", "w = 4\n"]


def test_the_examples_of_the_readme_are_found(check_types):
    readme = ROOT / "README.md"
    program = "\n".join([check_types.GIVEN, *check_types.examples(readme.read_text("utf-8"))])
    assert "sample(" in program and "Pipeline.from_pretrained(" in program and "ops.group_norm(" in program
    ast.parse(program)
