"""Which of some names a user may have meant."""

import difflib
from collections.abc import Iterable

LEAST_ALIKE = 0.3  # ratio of difflib; below it a name is another one, not a misspelt one


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The nearest of the known names: one that begins with `name`, else one that has it, else the most alike.

    Args:
        name: what was given.
        known: names; of several that are equally near, the last one in order is taken.

    Returns:
        A known name, or None if none is near.

    Example:
        >>> nearest("real", ["realsr", "faceir", "nano"])
        'realsr'
    """

    def likeness(one: str) -> tuple[bool, bool, float]:
        is_part = len(name) > 1 and name in one
        ratio = 1.0 if is_part else difflib.SequenceMatcher(None, name, one).ratio()
        return is_part and one.startswith(name), is_part, ratio

    best = max(sorted(known, reverse=True), key=likeness, default=None)
    return best if best is not None and likeness(best)[2] >= LEAST_ALIKE else None
