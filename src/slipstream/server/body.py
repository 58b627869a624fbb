"""Reading a request's body: bounded while it is read, whatever its content type says, and strict JSON."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request

from slipstream.api.openai import Body, parse
from slipstream.errors import RequestError, TooLarge


class Disconnected(Exception):
    """The client has gone before its request was complete, or before its answer was."""


async def read_request(request: Request, kind: type[Body], limit: int) -> Body:
    """The body as a request. Raises TooLarge over `limit` bytes, RequestError for what is not such a request."""
    return parse(decode(await read_body(request, limit)), kind)


async def read_body(request: Request, limit: int) -> bytes:
    """The body's bytes. A declared length over the limit is refused unread, a chunked body as soon as it is over."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def decode(body: bytes) -> Any:
    """Strict JSON: UTF-8, no NaN, no lone surrogates, nested at most 1024 deep. Raises RequestError `invalid_json`."""
    if not body:
        raise RequestError("the body is empty: send a JSON object", code="invalid_json")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from None


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is over the limit of {limit} bytes", code="body_too_large")
