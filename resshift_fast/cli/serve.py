"""`resshift-fast serve`: restore pictures over HTTP."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

from resshift_fast.apps import extras
from resshift_fast.cli import console
from resshift_fast.cli.options import (
    Autoencoder,
    Backend,
    Device,
    Dtype,
    Host,
    Model,
    Port,
    Threads,
    Weights,
    chosen_model,
    option,
    weights_files,
)
from resshift_fast.cli.request import threads as limited_threads

if TYPE_CHECKING:
    import socket

    from resshift_fast.apps.service.limits import Limits
    from resshift_fast.pipeline import Pipeline

MODULES = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
}


def serve(
    model: Model = None,
    weights: Weights = None,
    autoencoder: Autoencoder = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    batch_size: Annotated[
        int, option("Most tiles, and so waiting pictures of one shape, restored at once. Default: 8.", min=1)
    ] = 8,
    queue: Annotated[
        int, option("Most requests at once; more are answered with 429. Default: 32.", min=1, metavar="N")
    ] = 32,
    max_megapixels: Annotated[
        float, option("Largest picture that is taken, in megapixels. Default: 1.", metavar="N")
    ] = 1.0,
    max_megabytes: Annotated[float, option("Largest request that is taken, in MB. Default: 32.", metavar="N")] = 32.0,
    seconds: Annotated[
        float, option("Longest time for a request, in seconds, waiting included. Default: 60.", metavar="N")
    ] = 60.0,
    max_connections: Annotated[
        int, option("Most connections at once, idle ones included. Default: 500.", min=1, metavar="N")
    ] = 500,
    receive_seconds: Annotated[
        float,
        option("Longest time for the head of a request to arrive, and for its body. Default: 20 seconds.", metavar="N"),
    ] = 20.0,
    send_seconds: Annotated[
        float, option("Longest time for a client to take its picture. Default: 60 seconds.", metavar="N")
    ] = 60.0,
    keep_alive_seconds: Annotated[
        float, option("Time that a connection may be idle after an answer. Default: 5 seconds.", metavar="N")
    ] = 5.0,
    threads: Threads = None,
    device: Device = None,
    dtype: Dtype = "float32",
    backend: Backend = None,
    verbose: Annotated[bool, option("Also print what the package logs. Default: no.", "-v", "--verbose")] = False,
) -> None:
    """Restore pictures that are sent over HTTP: POST a picture to /restore, and get a picture.

    Waiting pictures of one shape are restored together, with the results of single calls. Also answers /health, and
    /metrics for Prometheus. SIGTERM and Ctrl-C refuse new requests and finish those that run; again, at once.

    There are no accounts and no encryption: before it listens to other machines, put a server before it that has both.
    """
    extras.require("serve", MODULES)
    if verbose:
        console.prepare_logging(logging.DEBUG)
    times = {"seconds": seconds, "receive_seconds": receive_seconds, "send_seconds": send_seconds}
    times["keep_alive_seconds"] = keep_alive_seconds
    limits = _limits(queue, max_connections, max_megapixels, max_megabytes, times)
    from resshift_fast.apps.listening import bound
    from resshift_fast.backends import preferred, use_backend
    from resshift_fast.pipeline import Pipeline

    with bound(host, port) as listener, use_backend(backend or preferred()), limited_threads(threads):
        files = weights_files(weights, autoencoder)
        pipe = Pipeline.from_pretrained(chosen_model(model, weights), **files, device=device, dtype=dtype)
        _run(pipe, limits, batch_size, listener)


def _limits(queue: int, connections: int, megapixels: float, megabytes: float, times: dict[str, float]) -> Limits:
    from resshift_fast.apps.service.limits import Limits

    for name, value in (("megapixels", megapixels), ("megabytes", megabytes)):
        if not 0 < value < 1e6:
            raise ValueError(f"--max-{name} is {value}, expected a positive number")
    for name, value in times.items():
        if not 0 < value < 1e6:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, expected a positive number")
    pixels, size = max(1, int(megapixels * 1e6)), max(1, int(megabytes * 1e6))
    return Limits(pixels=pixels, body_bytes=size, queue=queue, connections=connections, **times)


def _run(pipe: Pipeline, limits: Limits, batch_size: int, listener: socket.socket) -> None:
    import numpy as np

    from resshift_fast.apps.listening import is_local, url_of
    from resshift_fast.apps.service.server import Server
    from resshift_fast.apps.service.server import serve as run
    from resshift_fast.apps.service.web import Service

    # What the first picture would have to wait for.
    mask = np.ones((8, 8), bool) if pipe.spec.needs_mask else None
    pipe(np.zeros((8, 8, 3), np.uint8), mask, progress=False)
    local = is_local(listener)
    service = Service(pipe, limits, batch_size, is_local=local)

    def on_stop(requests: int) -> None:
        console.say(f"stopping: {requests} requests are finished, new ones are refused")

    url = url_of(listener)
    console.say(f"{pipe.spec.name} on {pipe.device}: POST pictures to {url}restore; Ctrl-C stops")
    if not local:
        text = "other machines can reach this service, which has no password; --host 127.0.0.1 keeps it to this one"
        console.say(f"warning: {text}", logging.WARNING)
    try:
        run(Server(service, on_stop), listener, limits)
    finally:
        service.close()
    console.say(f"stopped after {service.restored} pictures")
