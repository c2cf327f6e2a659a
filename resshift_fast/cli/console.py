"""Output of the commands: text that every terminal can show, and errors in one line that says what to do."""

import codecs
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from threading import RLock
from typing import Any, TextIO, cast

from resshift_fast.core.memory import ResultTooLargeError, is_out_of_memory
from resshift_fast.core.text import visible

DEBUG_VARIABLE = "RESSHIFT_FAST_DEBUG"

_PACKAGE = logging.getLogger("resshift_fast")
_LOG = logging.getLogger(__name__)
_without_bars = False
_HANDLER = "resshift_fast.plain"
_PLAIN = {"×": "x", "→": "->", "−": "-", "–": "-", "…": "...", "≥": ">=", "≤": "<="}


class Stream:
    """A stream of text for terminals, from which control characters are escaped.

    If it can no longer be written, since its reader has gone or the disk is full, the text is dropped and the work goes
    on.

    Args:
        stream: where the text goes; None, if the program was started without it, drops all.

    Attributes:
        error: why it can no longer be written; None if it can.
    """

    def __init__(self, stream: TextIO | None):
        self._stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write text; lines, tabs and carriage returns, by which progress bars are drawn, stay."""
        if not isinstance(text, str):  # by which typer finds out that this is a stream of text
            raise TypeError(f"write: expected a str, got {type(text).__name__}")
        if self.error is None:
            try:
                self._stream.write(visible(text, keep="\n\r\t"))
            except OSError as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Send on what has been written."""
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.error = error
        # What the stream still holds would fail again at the end of the program.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_missing() -> None:
    """Open the standard streams that the program was started without, so that no other file takes their place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def prepare_streams() -> None:
    """Make stdout and stderr show every text: plain characters for those that their encoding lacks, no controls."""
    codecs.register_error(_HANDLER, _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_HANDLER)
        if not isinstance(stream, Stream):
            setattr(sys, name, Stream(stream))


@contextmanager
def own_stdout() -> Iterator[TextIO]:
    """Keep stdout for the stream that is yielded: what else prints there is dropped, native code too."""
    before = sys.stdout
    before.flush()
    with open(os.devnull, "w", encoding="utf-8") as nothing, redirect_stdout(nothing):
        try:
            has_descriptor = before.fileno() == 1
        except (OSError, ValueError):
            has_descriptor = False
        if not has_descriptor:
            yield before
            return
        with os.fdopen(os.dup(1), "w", encoding=before.encoding, errors=before.errors) as copy:
            own = Stream(copy)
            os.dup2(nothing.fileno(), 1)
            try:
                yield cast("TextIO", own)
            finally:
                own.flush()
                os.dup2(copy.fileno(), 1)
                if isinstance(before, Stream):
                    before.error = before.error or own.error


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end


class _Lines(logging.Handler):
    """Prints records on stderr, a line each; those of the package's other rooms say where they are from."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.name != _LOG.name:
            text = f"{record.levelname.lower()}: {text}" if record.levelno != logging.INFO else text
        # Not typer.echo, which writes UTF-8 even to an ASCII terminal.
        print(visible(text), file=sys.stderr, flush=True)


def prepare_logging(level: int = logging.INFO) -> None:
    """Print what the package logs from this level on: logging.DEBUG for all, logging.ERROR for errors alone."""
    if not any(isinstance(handler, _Lines) for handler in _PACKAGE.handlers):
        _PACKAGE.addHandler(_Lines())
    _PACKAGE.setLevel(level)


def end_logging() -> None:
    """Undo `prepare_logging`, so that a program that has run a command logs as before."""
    _PACKAGE.handlers = [handler for handler in _PACKAGE.handlers if not isinstance(handler, _Lines)]
    _PACKAGE.setLevel(logging.NOTSET)


def is_quiet() -> bool:
    """Whether errors alone are printed."""
    return not _LOG.isEnabledFor(logging.INFO)


def hide_bars() -> None:
    """Show no progress bars in this process from now on: those of several on one terminal would overwrite another."""
    from tqdm import tqdm

    global _without_bars
    _without_bars = True
    tqdm.set_lock(RLock())  # not one between processes, which would be left behind by a process that is killed


def bars_are_hidden() -> bool:
    """Whether progress bars are not shown, on a terminal either."""
    return _without_bars or is_quiet()


def say(text: str, level: int = logging.INFO) -> None:
    """Print one line on stderr, for everything that is not a command's result."""
    if not any(isinstance(handler, _Lines) for handler in _PACKAGE.handlers):  # a script that uses these functions
        prepare_logging()
    _LOG.log(level, "%s", text)


def report(error: BaseException, subject: str = "", tile: int | None = None, *, smaller: str = "") -> None:
    """Print an error as one line, after its traceback if RESSHIFT_FAST_DEBUG is set."""
    if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
        traceback.print_exception(error)
    say(f"error: {explain(error, subject, tile, smaller=smaller)}", logging.ERROR)


def explain(error: BaseException, subject: str = "", tile: int | None = None, *, smaller: str = "") -> str:
    """What went wrong and what to do, in one line.

    Args:
        error: what was caught.
        subject: the file it is about; put in front if the message does not name it.
        tile: the tile side in input pixels that was used, for the advice when memory runs out.
        smaller: that advice for a command without tiles.
    """
    if isinstance(error, ResultTooLargeError):
        text = one_line(error)
    elif is_out_of_memory(error):
        tiles = f"a smaller --tile than {tile}" if tile else "a smaller --tile"
        text = f"not enough memory; try {smaller or f'{tiles}, --batch-size 1 or --dtype bfloat16'}"
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    elif isinstance(error, (ValueError, TypeError, OSError, FloatingPointError, ModuleNotFoundError)):
        text = one_line(error)
    else:
        text = (
            f"internal error: {type(error).__name__}: {one_line(error)}; run again with {DEBUG_VARIABLE}=1 to see where"
        )
    return text if not subject or subject in text else f"{subject}: {text}"


def one_line(message: object) -> str:
    """A message without line breaks; for an exception without a message, its class."""
    text = " ".join(str(message).split())
    return text or type(message).__name__


def duration(seconds: float) -> str:
    """Format a time: 0.8 s, 42 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(whole / 60), 60)
    return f"{hours} h {minutes} min"
