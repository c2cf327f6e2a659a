"""Listening: a socket, connections that can't be held by slow clients, and an end that finishes what runs."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from resshift_fast.apps.service.codecs import noted_warnings
from resshift_fast.apps.service.limits import Limits
from resshift_fast.apps.service.web import Service
from resshift_fast.images.limits import limited

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_FULL_TEXT = b'{"error": "there are too many connections; try again later"}'
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 5\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(_FULL_TEXT), _FULL_TEXT)
)


def protocol(limits: Limits) -> type[H11Protocol]:
    """uvicorn's protocol, which also ends connections that are too many, that send no request, or take no answer."""

    class Connection(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _is_between = False  # after an answer, before the next request

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait(limits.receive_seconds)
            if len(self.connections) > limits.connections:
                transport.write(_FULL)
                transport.close()

        def data_received(self, data: bytes) -> None:
            if self._is_between and not self.flow.write_paused:
                self._wait(limits.receive_seconds)
            self._is_between = False
            super().data_received(data)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def handle_events(self) -> None:
            super().handle_events()
            if self.cycle is not None and not self.cycle.response_complete and not self.flow.write_paused:
                self._stop_waiting()  # for a request, which has begun

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle is None or self.cycle.response_complete:  # else the next request had arrived already
                self._is_between = True
                self._wait(limits.send_seconds)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._wait(limits.send_seconds)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.cycle is None or not self.cycle.response_complete:
                self._stop_waiting()

        def _wait(self, seconds: float) -> None:
            self._stop_waiting()
            self._timer = asyncio.get_running_loop().call_later(seconds, self.transport.abort)

        def _stop_waiting(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Connection


class Server(uvicorn.Server):
    """uvicorn's server for a service; SIGTERM and Ctrl-C finish what runs, a second one ends it at once.

    Args:
        service: what it serves. on_stop: called when it begins to stop, with the number of requests that run.
    """

    def __init__(self, service: Service, on_stop: Callable[[int], None] = lambda _: None):
        limits = service.limits
        config = uvicorn.Config(
            service.app,
            http=protocol(limits),
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=limits.keep_alive_seconds,  # type: ignore[arg-type]
            # Each request has ended by then, whatever its client does.
            timeout_graceful_shutdown=int(limits.receive_seconds + limits.seconds + limits.send_seconds) + 1,
        )
        super().__init__(config)
        self._service, self._on_stop = service, on_stop

    def stop(self, *_: Any) -> None:
        """Refuse new requests, and end when those that run are finished; at once if called again."""
        if self.should_exit:
            self.force_exit = True
            return
        self._service.stopping = self.should_exit = True
        self._on_stop(self._service.places)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on signals within the block; uvicorn's own would end the process by the signal afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {one: signal.signal(one, self.stop) for one in _SIGNALS}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


def serve(server: Server, listener: socket.socket, limits: Limits) -> None:
    """Answer requests until the server is stopped."""
    # What a client sends that is no HTTP, or no form, is answered, and no matter for the log.
    for name in ("uvicorn.error", "python_multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with listener, limited(limits.pixels), noted_warnings():
        server.run(sockets=[listener])
