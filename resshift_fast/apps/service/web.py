"""The requests of a service, and what it answers."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from resshift_fast import __version__
from resshift_fast.apps.service import codecs, uploads
from resshift_fast.apps.service.batching import Batcher
from resshift_fast.apps.service.limits import Limits
from resshift_fast.apps.service.metrics import Metrics
from resshift_fast.apps.service.refusals import RefusedError, refusal
from resshift_fast.images import Photo
from resshift_fast.pipeline import Pipeline

_log = logging.getLogger(__name__)
_CODEC_THREADS = 2  # besides the one that restores
_PART = 1 << 18  # bytes that are sent at once
_LONGEST_WAIT = 60  # seconds that a client is told to wait
_USAGE = """resshift-fast {version}, model {model}

POST a picture to /restore and get a picture, as the body or as a form:
    curl --data-binary @photo.jpg "{url}restore?seed=7" -o restored.png
    curl -F image=@photo.jpg -F format=jpg {url}restore -o restored.jpg
Options: {options}
GET /health, /metrics (Prometheus), /openapi.json
"""


class Service:
    """A FastAPI application that restores pictures.

    Args:
        pipe: the model. limits: on what clients may send and cost. batch_size: tiles restored at once.
        is_local: only requests to names of this machine are answered, so that no page of another site reaches it.

    Attributes:
        app: the application. limits: as given. places: requests at once. restored: pictures so far.
        stopping: set to refuse new requests while those that run are finished.
    """

    def __init__(self, pipe: Pipeline, limits: Limits, batch_size: int, *, is_local: bool = True):
        self.limits, self.stopping = limits, False
        self._pipe, self._is_local = pipe, is_local
        self._metrics = Metrics(pipe.spec.name)
        self._batcher = Batcher(pipe, batch_size, self._metrics.count_batch)
        self._codecs = ThreadPoolExecutor(_CODEC_THREADS, "resshift-fast-codecs")
        self.restored = 0
        self.places = 0  # requests at once; only the thread of the event loop changes it
        self.app = self._application()

    def close(self) -> None:
        """Restore what waits, and end the threads."""
        self._batcher.close()
        self._codecs.shutdown()

    def _application(self) -> FastAPI:
        # The pages of FastAPI that document it would load scripts from elsewhere.
        app = FastAPI(title="resshift-fast", version=__version__, docs_url=None, redoc_url=None)
        app.add_middleware(_Guard, is_local=self._is_local)
        app.post("/restore", response_class=Response, openapi_extra=_openapi())(self._restore)
        app.get("/health")(self._health)
        app.get("/metrics", response_class=PlainTextResponse)(self._show_metrics)
        app.get("/", response_class=PlainTextResponse)(self._show_usage)
        app.exception_handler(HTTPException)(_unknown)
        return app

    async def _restore(self, request: Request) -> Response:
        """Restore the picture of a request; holds a place until the answer is sent."""
        if self.stopping or self.places >= self.limits.queue:
            refused = self._refused_at_the_door()
            self._metrics.requests.labels(refused.status).inc()
            return _answer(refused)
        self._take_place()
        try:
            answer = await self._answered(request)
        except BaseException:
            self._free_place()
            raise
        return _Held(answer, self._free_place)

    async def _answered(self, request: Request) -> Response:
        status: object = "gone"
        try:
            upload = await uploads.received(request, self.limits)
            encoded = await self._restored(request, upload, time.monotonic())
            status = 200
            headers = {"Content-Type": encoded.media_type, "Cache-Control": "no-store"}
            if encoded.notes:
                text = "; ".join(encoded.notes)
                headers["Resshift-Fast-Notes"] = text.encode("latin-1", "replace").decode("latin-1")
            return Response(encoded.data, headers=headers)
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody reads
        except Exception as error:
            refused = refusal(error)
            if refused is None:
                _log.error("internal error: %s: %s", type(error).__name__, " ".join(str(error).split()))
                _log.debug("", exc_info=error)
                refused = RefusedError(500, "an internal error, which the service has logged; try another picture")
            status = refused.status
            return _answer(refused)
        finally:
            self._metrics.requests.labels(status).inc()

    async def _restored(self, request: Request, upload: uploads.Upload, began: float) -> codecs.Encoded:
        loop = asyncio.get_running_loop()
        gone = asyncio.ensure_future(_gone(request))
        try:
            spec, most = self._pipe.spec, self.limits.pixels
            decoding = loop.run_in_executor(self._codecs, codecs.decode, upload, spec, most)
            seed = upload.options.seed
            del upload
            decoded = await self._within(decoding, gone, began)
            work = self._batcher.submit(decoded.photo, decoded.mask, seed)
            try:
                result: Photo = await self._within(asyncio.wrap_future(work.future), gone, began)
            except BaseException:
                work.abandon()
                raise
            encoding = loop.run_in_executor(self._codecs, codecs.encode, decoded, result)
            encoded: codecs.Encoded = await self._within(encoding, gone, began)
        finally:
            gone.cancel()
        self._metrics.seconds.observe(time.monotonic() - began)
        self._metrics.pixels.inc(encoded.pixels)
        self.restored += 1
        return encoded

    async def _within(self, future: asyncio.Future[Any], gone: asyncio.Future[None], began: float) -> Any:
        """The result of a future; raises RefusedError after the seconds of a request, ClientDisconnect without one."""
        left = self.limits.seconds - (time.monotonic() - began)
        done, _ = await asyncio.wait({future, gone}, timeout=max(0, left), return_when=asyncio.FIRST_COMPLETED)
        if future in done:
            return future.result()
        future.cancel()
        if gone in done:
            raise ClientDisconnect
        text = f"the result took longer than {self.limits.seconds:g} seconds; send a smaller picture, or try later"
        raise RefusedError(504, text)

    def _refused_at_the_door(self) -> RefusedError:
        if self.stopping:
            return RefusedError(503, "the service is stopping", {"Connection": "close"})
        wait = math.ceil(self.places * self._batcher.seconds_per_photo)
        text = f"{self.places} requests are being served, which is the most; try again later"
        return RefusedError(429, text, {"Retry-After": str(min(_LONGEST_WAIT, max(1, wait)))})

    def _take_place(self) -> None:
        self.places += 1
        self._metrics.in_progress.set(self.places)

    def _free_place(self) -> None:
        self.places -= 1
        self._metrics.in_progress.set(self.places)

    async def _health(self) -> Response:
        """200 if pictures are restored, else 503."""
        status = "stopping" if self.stopping else "ok" if self._batcher.is_alive else "failed"
        content = {"status": status, "model": self._pipe.spec.name, "version": __version__, "requests": self.places}
        return JSONResponse(content, 200 if status == "ok" else 503)

    async def _show_metrics(self) -> Response:
        """Counters in the text format of Prometheus."""
        return Response(self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _show_usage(self, request: Request) -> Response:
        """How to use the service."""
        names = ", ".join(uploads.Options.model_fields)
        text = _USAGE.format(version=__version__, model=self._pipe.spec.name, url=request.base_url, options=names)
        return PlainTextResponse(text)


class _Guard:
    """Refuses what a page of another site makes a browser send.

    Args:
        app: what it guards. is_local: the service is for this machine alone.
    """

    def __init__(self, app: ASGIApp, is_local: bool):
        self._app, self._is_local = app, is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        host = request.url.hostname or ""
        answer: ASGIApp = self._app
        if self._is_local and host != "localhost" and not _is_loopback(host):
            text = f"{host!r:.80} is no name of this machine; use localhost, or start the service with --host"
            answer = _answer(RefusedError(403, text))
        elif request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            answer = _answer(RefusedError(403, "pages of other sites may not use this service"))
        await answer(scope, receive, send)


class _Held(Response):
    """An answer that is sent in parts, as fast as the client takes them; `release` is called at the end."""

    def __init__(self, answer: Response, release: Callable[[], None]):
        self._answer, self._release = answer, release
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._answer
        try:
            await send({"type": "http.response.start", "status": answer.status_code, "headers": answer.raw_headers})
            body = memoryview(answer.body)
            for start in range(0, max(1, len(body)), _PART):
                part = bytes(body[start : start + _PART])
                await send({"type": "http.response.body", "body": part, "more_body": start + _PART < len(body)})
        finally:
            self._release()


async def _gone(request: Request) -> None:
    """Ends when the client has gone, once its request has been received."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answer(refused: RefusedError) -> Response:
    return JSONResponse({"error": str(refused)}, refused.status, refused.headers)


async def _unknown(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    text = f"{request.method} {request.url.path!r:.80} is not served; POST a picture to /restore"
    return _answer(RefusedError(status, text))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _openapi() -> dict[str, Any]:
    """What /openapi.json says of a request, which FastAPI can't know since it is a picture or a form."""
    schema = uploads.Options.model_json_schema()["properties"]
    binary = {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {"image": binary, "mask": binary, **schema}, "required": ["image"]}
    return {
        "parameters": [
            {"name": name, "in": "query", "schema": one, "description": one.get("description", "")}
            for name, one in schema.items()
        ],
        "requestBody": {
            "required": True,
            "content": {"image/*": {"schema": binary}, "multipart/form-data": {"schema": form}},
        },
    }
