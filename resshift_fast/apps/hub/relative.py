"""Imports of a package by its name, made relative, so that the package works under any name and from any folder."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

PACKAGE = __name__.partition(".")[0]


def relative(source: str, module: str, homes: Mapping[str, str], *, is_package: bool = False) -> str:
    """A source whose imports of this package are relative ones; the rest is as it was.

    Args:
        source: Python code.
        module: its dotted name after the move, "" for the moved package itself; is_package: whether it is one.
        homes: of every module that is moved, its dotted name now to that after the move, without the package's.

    Raises:
        ValueError: for an import of a module that is not moved, or one that can't be made relative.

    Example:
        >>> homes = {"resshift_fast.ops": "ops", "resshift_fast.ops.checks": "ops.checks"}
        >>> relative("from resshift_fast.ops.checks import image", "ops", homes, is_package=True)
        'from .checks import image'
    """
    lines = source.splitlines(keepends=True)
    folder = _parts(module) if is_package else _parts(module)[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(_is_ours(alias.name) for alias in node.names):
            raise ValueError(f"{module}, line {node.lineno}: write `from {PACKAGE} import ...`, which can be relative")
        if isinstance(node, ast.ImportFrom) and not node.level and _is_ours(node.module or ""):
            found = {_home(str(node.module), alias.name, homes) for alias in node.names}
            if None in found or len(found) > 1:
                names = ", ".join(alias.name for alias in node.names)
                raise ValueError(f"{module}, line {node.lineno}: {names} of {node.module} are not all moved together")
            target = _parts(found.pop() or "")
            common = 0
            while common < min(len(folder), len(target)) and folder[common] == target[common]:
                common += 1
            name = "." * (len(folder) - common + 1) + ".".join(target[common:])
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = re.sub(
                rf"\bfrom\s+{re.escape(str(node.module))}\s", f"from {name} ", line, count=1
            )
    return "".join(lines)


def _home(module: str, name: str, homes: Mapping[str, str]) -> str | None:
    """Where `name`, which is imported from a module, is imported from after the move; None if it is not moved."""
    if (home := homes.get(f"{module}.{name}")) is not None:
        return home.rpartition(".")[0]
    return homes.get(module)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == PACKAGE


def _parts(module: str) -> list[str]:
    return module.split(".") if module else []
