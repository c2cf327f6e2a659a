"""A stand-in for `workers.Worker` that stays in this process, where a test has changed the catalogue."""

from typing import ClassVar

from resshift_fast.measure.workers import WorkerError


class LocalWorker:
    """The result of `make(*args)`, with errors as from a worker process.

    Attributes:
        calls: (name of the case, method) of every call of all workers, in order.
    """

    calls: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, make, *args):
        self._name = getattr(args[0], "name", "")
        self._made = self._attempt(make, args)
        self.closed = False

    def call(self, method, *args):
        self.calls.append((self._name, method))
        return self._attempt(getattr(self._made, method), args)

    def close(self):
        self.closed = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @staticmethod
    def _attempt(function, args):
        try:
            return function(*args)
        except Exception as error:
            raise WorkerError(str(error)) from error
