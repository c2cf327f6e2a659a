"""`resshift-fast app`: restore photos in the browser."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from typing import Annotated, Any

from resshift_fast.apps import extras
from resshift_fast.cli import console
from resshift_fast.cli.options import (
    Autoencoder,
    Backend,
    Device,
    Dtype,
    Host,
    Port,
    Threads,
    Weights,
    chosen_model,
    option,
    weights_files,
)
from resshift_fast.cli.request import threads as limited_threads


def page(
    models: Annotated[
        list[str] | None,
        option(
            "A model to choose on the page; may be repeated. Default: those whose weights are on this machine.",
            "--model",
            metavar="NAME",
        ),
    ] = None,
    weights: Weights = None,
    autoencoder: Autoencoder = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    queue: Annotated[int, option("Most restorations that wait. Default: 16.", min=1, metavar="N")] = 16,
    max_megapixels: Annotated[
        float, option("Largest photo that is taken, in megapixels. Default: 12.", metavar="N")
    ] = 12.0,
    max_megabytes: Annotated[float, option("Largest file that is taken, in MB. Default: 64.", metavar="N")] = 64.0,
    threads: Threads = None,
    device: Device = None,
    dtype: Dtype = "float32",
    backend: Backend = None,
) -> None:
    """Show a page in the browser: upload a photo, restore it, and compare before and after.

    With an inpainting model, what is to be filled in is painted. Photos are restored one after another and can be
    cancelled. Ctrl-C stops.
    """
    extras.require("app", {"gradio": "gradio"})
    for name, value in (("megapixels", max_megapixels), ("megabytes", max_megabytes)):
        if not 0 < value < 1e6:
            raise ValueError(f"--max-{name} is {value}, expected a positive number")
    if (weights or autoencoder) and len(models or [""]) > 1:
        raise ValueError("--weights and --autoencoder are for one model; name one --model")
    from resshift_fast.apps.listening import bound
    from resshift_fast.backends import preferred, use_backend
    from resshift_fast.images.limits import limited

    chosen = models or ([chosen_model(None, weights)] if weights else [])
    files = weights_files(weights, autoencoder)
    with bound(host, port) as listener:
        port = listener.getsockname()[1]
    with (
        use_backend(backend or preferred()),
        limited_threads(threads),
        limited(max(2, int(max_megapixels * 1e6))),
        tempfile.TemporaryDirectory(prefix="resshift-fast-uploads-") as folder,
    ):
        os.environ["GRADIO_TEMP_DIR"] = folder  # so that no upload is left behind
        loading = {**files, "device": device, "dtype": dtype}
        _show(chosen, loading, queue, max_megapixels, host, port, max_megabytes)


def _show(
    names: list[str],
    loading: dict[str, Any],
    queue: int,
    megapixels: float,
    host: str,
    port: int,
    megabytes: float,
) -> None:
    from resshift_fast.apps.page import Page, launched, offered
    from resshift_fast.pipeline import Pipeline

    shown = Page(offered(names), lambda name: Pipeline.from_pretrained(name, **loading), queue, megapixels)
    ended = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        url = launched(shown, host, port, megabytes)
        console.say(f"open {url} in a browser; Ctrl-C stops")
        if host not in ("127.0.0.1", "localhost", "::1"):
            text = "other machines can reach this page, which has no password; --host 127.0.0.1 keeps it to this one"
            console.say(f"warning: {text}", logging.WARNING)
        while not ended.wait(0.5):  # on Windows, a wait without end can't be interrupted
            pass
    finally:
        signal.signal(signal.SIGTERM, before)
        shown.close()
        shown.blocks.close(verbose=False)
    console.say("stopped")
