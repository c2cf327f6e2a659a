"""Forked processes: they run on one thread, since torch's threads do not survive a fork.

The child of a process whose torch has run in parallel waits for ever for the threads of its parent at the next parallel
operation. Worker processes that are to use several threads have to be started with multiprocessing's method "spawn".
"""

import os
from functools import cache


@cache
def prepare() -> None:
    """Have every process that is forked from this one use one thread; called any number of times."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_use_one_thread)


def _use_one_thread() -> None:
    import torch

    torch.set_num_threads(1)
