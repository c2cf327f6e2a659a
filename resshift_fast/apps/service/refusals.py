"""Requests that are refused: a status of HTTP, and one line that says why and what to do."""

from __future__ import annotations

from resshift_fast.core.memory import is_out_of_memory
from resshift_fast.images.errors import ImageError, one_line


class RefusedError(Exception):
    """A request that gets no picture.

    Args:
        status: of HTTP. text: one line for the client. headers: of the answer.
    """

    def __init__(self, status: int, text: str, headers: dict[str, str] | None = None):
        super().__init__(text)
        self.status, self.headers = status, headers or {}


def refusal(error: Exception) -> RefusedError | None:
    """The answer to an error of reading, restoring or encoding a picture; None if it is a fault of the program."""
    if isinstance(error, RefusedError):
        return error
    if is_out_of_memory(error):
        return RefusedError(503, "there is not enough memory for this picture now; send a smaller one, or try later")
    if isinstance(error, ImageError):
        return RefusedError(422, one_line(error))
    return None
