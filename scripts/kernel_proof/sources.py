"""The sources that a C++ file is compiled from."""

import re
from pathlib import Path


def contents(source: Path, seen: set[Path] | None = None) -> bytes:
    """The text of a file and of all files that it includes by a relative path, each once, in a fixed order.

    Args:
        source: the file. seen: resolved paths that are left out, to which those of the result are added.
    """
    seen = set() if seen is None else seen
    seen.add(source.resolve())
    text = source.read_bytes()
    included = [(source.parent / name.decode()).resolve() for name in re.findall(rb'#include "(.+)"', text)]
    return text + b"".join(contents(file, seen) for file in included if file.exists() and file not in seen)
