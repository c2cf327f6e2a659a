"""Reaching a Ray cluster, and dividing it among workers."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from resshift_fast.apps import extras

MODULES = {"ray": "ray[data]", "pyarrow": "pyarrow", "fsspec": "fsspec"}
LOCAL = "local"
SECONDS = 20.0  # for a cluster to answer
THREADS = 4  # of a worker on a CPU, unless others are asked for
_HOST = re.compile(r"(\[?[A-Za-z0-9_.:%-]+\]?):([0-9]{1,5})")
_MEMORY = 1 << 28  # bytes for what workers exchange on this machine; names of files are all


class UnreachableError(OSError):
    """There is no Ray cluster at an address; the message is one line and says what to do."""


@dataclass(frozen=True)
class Division:
    """How a cluster is divided.

    Attributes:
        workers: how many restore at once. device: on which each does. cpus, gpus: that each takes.
    """

    workers: int
    device: str
    cpus: int
    gpus: int


def require() -> None:
    """Raise MissingExtraError without the packages that a cluster needs."""
    extras.require("ray", MODULES)


def is_address(text: str) -> bool:
    """Whether a text names a cluster, as local, auto, host:6379 or ray://host:10001 do."""
    return text in (LOCAL, "auto") or text.startswith("ray://") or _HOST.fullmatch(text) is not None


def check_address(address: str) -> None:
    """Raise ValueError for what can't be an address, or can't be used."""
    if address.startswith("ray://"):
        raise ValueError(
            f"--ray {address}: Ray Data does not run through a Ray client; start this on a machine of the cluster with "
            "--ray auto, or with `ray job submit -- resshift-fast restore --ray …`"
        )
    if not is_address(address):
        raise ValueError(f"--ray {address}: give {LOCAL}, auto, or an address as 10.0.0.1:6379")


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be connected to a cluster within the block; "local" starts one on this machine, and ends it.

    Args:
        address: HOST:PORT, "auto" for the cluster that runs on this machine, "local", or "" for the one that
            RAY_ADDRESS names, and "local" without it.

    Raises:
        MissingExtraError: without Ray. UnreachableError: if no cluster answers within `SECONDS`.
        ValueError: if the address is none.
    """
    require()
    address = address or os.environ.get("RAY_ADDRESS", "") or LOCAL
    check_address(address)
    found = _HOST.fullmatch(address)
    if found is not None:
        _check_answers(address, found[1].strip("[]"), int(found[2]))
    # Nothing is reported to anyone, and a worker without a GPU does not hide those of the machine from others.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # The driver's log is for its file; it would also print what its native code reports.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    own = {"include_dashboard": False, "object_store_memory": _MEMORY} if address == LOCAL else {}
    try:
        with _without_stderr():
            ray.init(
                address=address,
                runtime_env={"env_vars": _variables()},
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                **own,
            )
    except (Exception, SystemExit) as error:
        raise UnreachableError(_why_not(address, error)) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Drop what native code prints meanwhile; what is worth knowing is raised, too."""
    sys.stderr.flush()
    with open(os.devnull, "wb") as nothing:
        kept = os.dup(2)
        try:
            os.dup2(nothing.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _check_answers(address: str, host: str, port: int) -> None:
    """Raise UnreachableError if no cluster is there; Ray itself would look for it for two minutes."""
    try:
        socket.create_connection((host, port), timeout=SECONDS / 4).close()
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise UnreachableError(
            f"no Ray cluster answers at {address}: {reason}; check the address, or give --ray local"
        ) from error
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        answered = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        answered = False
    if not answered:
        raise UnreachableError(
            f"what answers at {address} is no Ray cluster of this version; give the address that `ray start` has shown"
        )


def _why_not(address: str, error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if address == "auto":
        return "no Ray cluster runs on this machine; start one with `ray start --head`, or use --ray local"
    if address == LOCAL:
        return f"Ray could not be started on this machine: {text}"
    return (
        f"the Ray cluster at {address} can't be used: {text}; this machine has to be one of its own, with the same "
        "versions of Python and Ray"
    )


def _variables() -> dict[str, str]:
    """What this program's environment says about it, for the workers."""
    named = {name: value for name, value in os.environ.items() if name.startswith("RESSHIFT_FAST_")}
    waiting = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    return named | {name: os.environ[name] for name in waiting if name in os.environ}


def division(
    machines: Sequence[Mapping[str, float]], device: str | None, threads: int | None, workers: int | None
) -> Division:
    """Divide a cluster: a worker for each GPU, or for each group of cores.

    Args:
        machines: the resources "CPU" and "GPU" of each.
        device: "cuda" or "cpu"; None takes GPUs if there are any.
        threads: of a worker on a CPU; None takes `THREADS`, and fewer if no machine has as many.
        workers: how many are wanted; more than there is room for wait until machines join. None for all that fit.

    Raises:
        ValueError: if not a single worker fits, and no number was given.
    """
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"--device {device}: with --ray it is cpu or cuda; each worker has a GPU of its own")
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    if device == "cuda" or (device is None and gpus):
        if not gpus and workers is None:
            raise ValueError("--device cuda: the cluster has no GPU; give --ray-workers N if some will join")
        return Division(workers or gpus, "cuda", 1, 1)
    cores = [int(machine.get("CPU", 0)) for machine in machines if machine.get("CPU", 0) >= 1]
    each = threads or min([THREADS, *cores])
    fit = sum(count // each for count in cores)
    if not fit and workers is None:
        raise ValueError(f"no machine of the cluster has {each} cores for a worker; give fewer --threads")
    return Division(workers or fit, "cpu", each, 0)


def machines() -> list[dict[str, Any]]:
    """The resources of each machine of the cluster that is alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
