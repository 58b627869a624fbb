"""An edit's pictures as clients send them: a form's files, or base64 in the body's JSON."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import IO, Any

import orjson
from starlette.requests import Request

from slipstream.api.images import ImageEditRequest, ImageReference
from slipstream.api.openai import parse
from slipstream.errors import RequestError
from slipstream.server.body import read_request
from slipstream.server.form import read_form

Files = Mapping[str, Sequence[IO[bytes]]]
"""What came as `image` and as `mask`: one of each is read, more are refused with a reason."""

LISTS = ("loras", "images")
"""Fields that are lists: in a form they are JSON text."""


@asynccontextmanager
async def read_edit_body(request: Request, limit: int) -> AsyncIterator[tuple[ImageEditRequest, Files]]:
    """A form, or a JSON object, with its files, which are there for as long as the block runs.

    Raises TooLarge over `limit` bytes in all, and RequestError.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        yield await read_request(request, ImageEditRequest, limit), {}
        return
    async with read_form(request, limit) as form:
        # A form's values are text; they are read as the numbers that the fields want.
        body = parse({name: _value(name, text) for name, text in form.fields.items()}, ImageEditRequest, strict=False)
        yield body, {name: [upload.file for upload in uploads] for name, uploads in form.files.items()}


def all_files(body: ImageEditRequest, files: Files) -> Files:
    """The form's files and those in the body's text. Takes time: not for the event loop. Raises RequestError."""
    images = [] if body.image is None else [body.image] if isinstance(body.image, str) else body.image
    images = [*images, *(one.image_url for one in body.images or ())]
    masks = [] if body.mask is None else [body.mask.image_url if isinstance(body.mask, ImageReference) else body.mask]
    found = {name: list(streams) for name, streams in files.items()}
    for name, texts in (("image", images), ("mask", masks)):
        if texts:
            found.setdefault(name, []).extend(_decoded(text, name) for text in texts)
    return found


def _decoded(text: str, name: str) -> IO[bytes]:
    """The bytes of a data URL, or of base64 as such."""
    head, comma, data = text.partition(",")
    if text.startswith(("http://", "https://")):
        raise RequestError(
            f"{name}: the server fetches no addresses: send a data URL, or a file in a form",
            param=name,
            code="unsupported_url",
        )
    if comma and not (head.startswith("data:") and head.endswith(";base64")):
        raise RequestError(
            f"{name}: a data URL begins with data:image/png;base64, or the like", param=name, code="invalid_image"
        )
    try:
        return io.BytesIO(base64.b64decode(data if comma else text, validate=True))
    except (binascii.Error, ValueError):
        raise RequestError(f"{name} is not valid base64", param=name, code="invalid_image") from None


def _value(name: str, text: str) -> Any:
    if name not in LISTS:
        return text
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise RequestError(
            f"{name}: in a form it is the text of a JSON array", param=name, code="invalid_type"
        ) from None
