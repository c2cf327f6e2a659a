"""Packages that only one part of the program needs, and that are installed with an extra."""

from importlib.util import find_spec


class MissingExtraError(ValueError):
    """An extra is not installed; the message is the command that installs it."""


def require(extra: str, modules: dict[str, str]) -> None:
    """Check that the packages of an extra are installed, without importing them.

    Args:
        extra: its name, as in `pip install 'resshift-fast[EXTRA]'`.
        modules: name of each module to that of its package.

    Raises:
        MissingExtraError: naming the packages that are missing.
    """
    missing = [package for module, package in modules.items() if find_spec(module) is None]
    if missing:
        needs = "needs another package" if len(missing) == 1 else "needs other packages"
        raise MissingExtraError(f"{extra} {needs}, {', '.join(missing)}: pip install 'resshift-fast[{extra}]'")
