"""Server-sent events: the stream of a completion, as bytes on their way to the client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress

import msgspec
from starlette.types import Send

from slipstream.api.images import ImageEvent
from slipstream.errors import RequestError
from slipstream.server.problems import error_bytes

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Asks nginx not to hold the stream back.
    (b"x-accel-buffering", b"no"),
]
# A reader that has stalled does not read the reason why its stream ends either.
_LAST_WORDS = 2.0


class EventStream:
    """Writes events. The head goes out with the first ones, so that an error before them has a status of its own.

    `write` returns when the socket has taken the bytes: a slow reader slows its writer, and nothing queues up here.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def write(self, chunks: Iterable[msgspec.Struct]) -> None:
        """Send the chunks in one go."""
        data = b"".join(_name(chunk) + b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks)
        if data:
            await self._head()
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """Send [DONE] and close."""
        await self._head()
        await self._send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    async def fail(self, error: RequestError) -> None:
        """Send the error as an event, [DONE], and close."""
        data = b"data: " + error_bytes(error) + b"\n\ndata: [DONE]\n\n"
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def _head(self) -> None:
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})


def _name(chunk: msgspec.Struct) -> bytes:
    """OpenAI's events of images have names beside their data; those of completions do not."""
    return f"event: {chunk.type}\n".encode() if isinstance(chunk, ImageEvent) else b""
