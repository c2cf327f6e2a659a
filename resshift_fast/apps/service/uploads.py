"""What a client sends: a picture as the body, or a form with a picture, a mask and options."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from resshift_fast.apps.service.forms import FormError, parts_of
from resshift_fast.apps.service.limits import Limits
from resshift_fast.apps.service.refusals import RefusedError

_LONGEST_OPTION = 1000  # characters
_FILES = ("image", "mask")


class Options(BaseModel):
    """What may be asked of a restoration; the same as of `resshift-fast restore`."""

    model_config = ConfigDict(extra="forbid")

    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the noise.")
    format: Literal["png", "jpg", "webp", "tiff", "same"] = Field("png", description="PNG if it can't hold the result.")
    scale: float | None = Field(None, gt=0, allow_inf_nan=False, description="Default: the model's, which is the most.")
    quality: int = Field(95, ge=1, le=100, description="Of JPEG and WebP.")
    background: str | None = Field(None, max_length=40, description="Colour to lay transparent pictures over.")
    eight_bits: bool = Field(False, description="Round the result to 8 bits per channel.")
    strip_metadata: bool = Field(False, description="Leave out all metadata but the colour profile.")


@dataclass(frozen=True)
class Upload:
    """A request: the bytes of the picture, those of its mask, and its options."""

    image: bytes
    mask: bytes | None
    options: Options


async def received(request: Request, limits: Limits) -> Upload:
    """Receive a request.

    Raises:
        RefusedError: if it is too large or too slow, no form, or has options that there are not.
        ClientDisconnect: if the client has gone.
    """
    query = list(request.query_params.multi_items())
    parsed_options(query)  # before anything is received
    try:
        body = await asyncio.wait_for(_body(request, limits), limits.receive_seconds)
    except asyncio.TimeoutError:
        text = f"the picture did not arrive within {limits.receive_seconds:g} seconds; send a smaller one"
        raise RefusedError(408, text, {"Connection": "close"}) from None
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        if not body:
            raise RefusedError(400, "there is no picture; send one as the body, or as the file `image` of a form")
        return Upload(body, None, parsed_options(query))
    return _form(request.headers["content-type"], body, query)


async def _body(request: Request, limits: Limits) -> bytes:
    most = limits.body_bytes
    too_large = RefusedError(413, f"a request has at most {most / 1e6:g} MB; send a smaller picture, or a JPEG of it")
    if int(request.headers.get("content-length", 0)) > most:  # the server has checked that it is a number
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise too_large
    return bytes(body)


def _form(content_type: str, body: bytes, query: list[tuple[str, str]]) -> Upload:
    try:
        parts = parts_of(content_type, body)
    except FormError as error:
        raise RefusedError(400, f"the form is damaged: {error}; send multipart/form-data") from None
    files: dict[str, bytes] = {}
    options = list(query)
    for part in parts:
        if not part.is_file:
            options.append((part.name, part.data[:_LONGEST_OPTION].decode("utf-8", "replace")))
        elif part.name not in _FILES or part.name in files:
            text = f"the form has a file {part.name!r:.40}; send one `image`, and one `mask` for inpainting"
            raise RefusedError(400, text)
        else:
            files[part.name] = bytes(part.data)
    if not files.get("image"):
        raise RefusedError(400, "the form has no picture; send it as the file `image`: curl -F image=@photo.jpg")
    return Upload(files["image"], files.get("mask"), parsed_options(options))


def parsed_options(items: Iterable[tuple[str, str]]) -> Options:
    """The options with these names and values; raises RefusedError if there are no such ones."""
    given = dict[str, str]()
    for name, value in items:
        if name in given:
            raise RefusedError(400, f"the option {name!r:.40} is given twice; give it once")
        given[name] = value
    try:
        return Options.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            known = ", ".join(Options.model_fields)
            raise RefusedError(400, f"there is no option {name!r:.40}; there are {known}") from None
        raise RefusedError(400, f"{name} is {given.get(name, '')!r:.40}: {first['msg']}") from None
