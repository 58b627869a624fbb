"""A connection's bytes: uvicorn's HTTP/1.1, with a bound on the size of a request's head and on the time it takes.

Bodies are bounded where they are read (`body`). A head is parsed before any endpoint sees the request, and the parser
would collect one without end, from anybody, with or without a key.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_LIMIT = 64 * 2**10
"""Bytes after which a request line and headers that have not ended are refused."""

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 33\r\nconnection: close\r\n\r\nthe request's head is too large.\n"
)


class Wire(HttpToolsProtocol):
    """One connection. A head gets as long as an idle connection does (`timeout_keep_alive`), then it is closed."""

    _in_head = True
    _head_bytes = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of the first head."""
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and refuse a head that has grown too large without an end."""
        if self._in_head:
            self._head_bytes += len(data)
            if self._deadline is None:
                self._start_clock()
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_LIMIT and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        """The head has ended."""
        self._in_head = False
        self._stop_clock()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """What comes next is the head of another request; its clock starts with its first byte."""
        super().on_message_complete()
        self._in_head = True
        self._head_bytes = 0

    def _start_clock(self) -> None:
        self._deadline = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
