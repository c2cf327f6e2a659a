"""A service on a free port of this machine for tests, its clients, and a model that can be held up."""

import contextlib
import http.client
import io
import json
import socket
import threading
import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from resshift_fast.apps.listening import bound
from resshift_fast.images import Photo
from resshift_fast.models import catalog

PATIENCE = 20.0  # seconds after which something has not happened
LIMITS = {"seconds": PATIENCE, "receive_seconds": PATIENCE, "send_seconds": PATIENCE, "keep_alive_seconds": 5.0}


class Enlarger:
    """Stands in for a pipeline: repeats pixels, adds the seed, and waits while `gate` is closed.

    Attributes:
        gate: an event, set by default. batches: number of photos of each call. fault: called with the photos of a call,
            and may raise.
    """

    def __init__(self, name="nano-x4"):
        self.spec, self.device = catalog.get(name), "cpu"
        self.plan_tiles = self.spec.plan_tiles
        self.gate, self.batches = threading.Event(), []
        self.gate.set()
        self.fault = lambda photos: None

    def __call__(self, photos, masks=None, *, seed, batch_size, progress):
        self.batches.append(len(photos))
        while not self.gate.wait(0.01):
            progress(0, 1)
        self.fault(photos)
        return [
            Photo(photo.pixels.repeat(4, 0).repeat(4, 1) + np.uint8(one % 256))
            for photo, one in zip(photos, seed, strict=True)
        ]


@dataclass
class Answer:
    """What a service answered."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def error(self):
        return json.loads(self.body)["error"]

    @property
    def pixels(self):
        return np.asarray(Image.open(io.BytesIO(self.body)))


class Running:
    """A service that runs.

    Attributes:
        service, server, address: of it.
    """

    def __init__(self, service, server, address):
        self.service, self.server, self.address = service, server, address

    def ask(self, method, path, body=None, headers=None):
        """Send one request on a connection of its own."""
        with contextlib.closing(http.client.HTTPConnection(*self.address, timeout=PATIENCE)) as connection:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())

    def post(self, body, query="", headers=None):
        return self.ask("POST", f"/restore{query}", body, headers)

    def later(self, body, query=""):
        """Post from a thread; the value's `answer` is None until there is one."""
        found = SimpleNamespace(answer=None)

        def run():
            found.answer = self.post(body, query)

        found.thread = threading.Thread(target=run, daemon=True)
        found.thread.start()
        return found

    def socket(self):
        return socket.create_connection(self.address, PATIENCE)

    def metric(self, name):
        lines = self.ask("GET", "/metrics").body.decode().splitlines()
        values = [
            float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == f"resshift_fast_{name}"
        ]
        return values[0] if values else 0.0


@contextlib.contextmanager
def running(pipe, *, batch_size=8, is_local=True, send_buffer=None, **limits):
    """Serve in a thread within the block; skips the test where the extra `serve` is not installed."""
    for module in ("fastapi", "prometheus_client", "python_multipart", "uvicorn"):
        pytest.importorskip(module, reason="the extra `serve` is not installed: pip install 'resshift-fast[serve]'")
    from resshift_fast.apps.service.limits import Limits
    from resshift_fast.apps.service.server import Server, serve
    from resshift_fast.apps.service.web import Service

    bounds = Limits(**{**LIMITS, **limits})
    listener = bound("127.0.0.1", 0)
    if send_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    service = Service(pipe, bounds, batch_size, is_local=is_local)
    server = Server(service)
    address = listener.getsockname()
    thread = threading.Thread(target=serve, args=(server, listener, bounds), daemon=True)
    thread.start()
    try:
        yield Running(service, server, address)
    finally:
        if not server.should_exit:
            server.stop()
        server.force_exit = True
        thread.join(PATIENCE)
        service.close()
    assert not thread.is_alive(), "the server has not stopped"


def until(condition):
    """Wait for something to happen."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.005)


def picture(height, width, seed=0, form="PNG"):
    """(the bytes of an image file of noise, its pixels)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return encoded(pixels, form), pixels


def encoded(pixels, form="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def form_of(boundary="b0undary", **parts):
    """(body, headers) of a form; bytes are files."""
    lines = []
    for name, value in parts.items():
        file = f'; filename="{name}.png"' if isinstance(value, bytes) else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        lines += [head.encode(), value if isinstance(value, bytes) else str(value).encode(), b"\r\n"]
    return b"".join([*lines, f"--{boundary}--\r\n".encode()]), {
        "Content-Type": f"multipart/form-data; boundary={boundary}"
    }
