"""An object in a new process, so that its memory can be measured and its failures are isolated."""

import contextlib
import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

from resshift_fast.core.text import visible

GRACE = 3.0  # seconds for a process to end by itself


class WorkerError(RuntimeError):
    """A call failed in the worker's process, or the process has died; the message is one line."""


class Worker:
    """`make(*args)` in a process of its own; `call` runs its methods there. A context manager that ends the process.

    Args:
        make, args: a class or function of a module, and its arguments; both are pickled, and so are results.

    Raises:
        WorkerError: if `make` fails.

    Example:
        >>> with Worker(dict, {"a": 1}) as worker:
        ...     print(worker.call("get", "a"))
        1
    """

    def __init__(self, make: Callable[..., Any], *args: Any):
        # A forked process would inherit its parent's memory, and torch's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, args))
        self._process.start()
        theirs.close()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *args: Any) -> Any:
        """Run a method in the process and return its result.

        Raises:
            WorkerError: if it fails there, or the process has died.
        """
        with contextlib.suppress(OSError):  # the process has died; `_answer` says so with the reason
            self._pipe.send((method, args))
        return self._answer()

    def close(self) -> None:
        """End the process, even in the middle of a call."""
        self._pipe.close()
        self._process.join(GRACE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def kill(self) -> None:
        """End the process, and wait until it has ended; a call that another thread waits for raises `WorkerError`."""
        self._process.kill()
        self._process.join(GRACE)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> Any:
        try:
            worked, value = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(GRACE)
            code = self._process.exitcode
            why = "killed by the system, perhaps because memory ran out" if code == -9 else f"exit code {code}"
            raise WorkerError(f"its process has died ({why})") from None
        if not worked:
            raise WorkerError(value)
        return value


def _serve(pipe: Any, make: Callable[..., Any], args: tuple) -> None:
    """The worker's process: serve calls until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {visible(_one_line(message))}", file=sys.stderr)
    try:
        made, answer = _attempt(make, args)
        pipe.send((made is not None, None if made is not None else answer))
        while made is not None:
            method, args = pipe.recv()
            result, reason = _attempt(getattr(made, method), args)
            pipe.send((not reason, reason or result))
    except (EOFError, OSError):
        pass  # the other end is closed


def _attempt(function: Callable[..., Any], args: tuple) -> tuple[Any, str]:
    """(result, "") or (None, error message)."""
    try:
        return function(*args), ""
    except Exception as error:
        known = isinstance(error, ValueError | OSError)
        return None, _one_line(error) if known else f"{type(error).__name__}: {_one_line(error)}"


def _one_line(message: object) -> str:
    text = " ".join(str(message).split())
    return text if len(text) <= 300 else text[:299] + "…"
