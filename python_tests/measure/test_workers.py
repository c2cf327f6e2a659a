"""Objects in a separate process."""

import os
import time
from threading import Timer

import pytest

from resshift_fast.measure.workers import Worker, WorkerError


class Thing:
    """An object for the worker process."""

    def __init__(self, number):
        if number < 0:
            raise ValueError(f"number is {number}")
        self.number = number

    def add(self, other):
        self.number += other
        return self.number

    def process(self):
        return os.getpid()

    def fail(self):
        raise KeyError("in two\nlines")

    def wait(self):
        time.sleep(60)

    def die(self):
        os._exit(3)


def test_an_object_lives_in_another_process_and_survives_its_errors():
    with Worker(Thing, 1) as worker:
        assert worker.call("process") != os.getpid()
        assert worker.call("add", 2) == 3
        with pytest.raises(WorkerError, match=r"^KeyError: 'in two\\nlines'$"):
            worker.call("fail")
        assert worker.call("add", 2) == 5


def test_another_thread_can_end_a_call():
    with Worker(Thing, 1) as worker:
        Timer(0.2, worker.kill).start()
        with pytest.raises(WorkerError, match="its process has died"):
            worker.call("wait")


def test_an_error_of_the_constructor_is_raised():
    with pytest.raises(WorkerError, match="^number is -1$"):
        Worker(Thing, -1)


def test_every_call_of_a_dead_process_is_an_error():
    with Worker(Thing, 1) as worker:
        for _ in range(2):
            with pytest.raises(WorkerError, match="process has died.*exit code 3"):
                worker.call("die")
        worker.close()  # and may be closed twice
