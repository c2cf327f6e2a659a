"""What type checkers see: the package's public names, and the examples of README and docs."""

import ast
from pathlib import Path

import resshift_fast
from scripts import check_types

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


def test_the_package_has_a_py_typed_marker():
    assert (FACE.parent / "py.typed").is_file()


def test_only_the_python_blocks_of_a_page_are_examples():
    page = "a\n```python\nx = 1\ny = 2\n```\n```\nrestore x\n```\n    z = 3\n```python\nw = 4\n```\n"
    assert check_types.examples(page) == ["x = 1\ny = 2\n", "w = 4\n"]


def test_the_examples_of_the_pages_are_found():
    programs = check_types.programs()
    assert {"readme_page", "python_page", "operators_page", "formats_page", "add_an_operator_page"} <= set(programs)
    assert all(code in programs["readme_page"] for code in ("sample(", "Pipeline.from_pretrained(", "ops.group_norm("))
    assert "opcheck(" in programs["add_an_operator_page"]
    for program in programs.values():
        ast.parse(program)
