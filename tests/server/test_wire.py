"""Heads of requests without end: refused from anybody, before a key could be asked for."""

from __future__ import annotations

import socket

import pytest

from slipstream.server.wire import HEAD_LIMIT

from .conftest import Live, Start

BEGIN = b"GET /version HTTP/1.1\r\nHost: x\r\n"


def connect(live: Live) -> socket.socket:
    return socket.create_connection(("127.0.0.1", live.server.servers[0].sockets[0].getsockname()[1]), timeout=20)


def answer(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    got = b""
    try:
        while data := connection.recv(65536):
            got += data
    except ConnectionResetError:  # it closed with bytes of ours unread
        pass
    return got


@pytest.mark.parametrize("piece", [b"X-A: " + b"a" * 1000, b"a" * 1000, b"X-B: b\r\n" * 100])
def test_a_head_without_end_is_refused(start: Start, piece: bytes) -> None:
    live = start()
    with connect(live) as connection:
        connection.sendall(BEGIN)
        sent = 0
        try:
            while sent < 64 * HEAD_LIMIT:
                connection.sendall(piece)
                sent += len(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        # The sockets' own buffers take some more after the server has stopped reading.
        assert sent < 64 * HEAD_LIMIT
    assert live.get("/version").status_code == 200


def test_the_refusal_says_why(start: Start) -> None:
    with connect(start()) as connection:
        connection.sendall(BEGIN + b"X-A: " + b"a" * HEAD_LIMIT)
        head, _, body = answer(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert b"content-length: %d" % len(body) in head


def test_large_bodies_and_later_heads_are_not_counted_together(start: Start) -> None:
    live = start("x")
    body = b'{"prompt":[1],"max_tokens":1,"user":"' + b"u" * 3 * HEAD_LIMIT + b'"}'
    request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with connect(live) as connection:
        for _ in range(3):
            connection.sendall(request)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("sent", [b"", BEGIN])
def test_a_head_that_does_not_come_ends_the_connection(start: Start, sent: bytes) -> None:
    live = start()
    live.server.config.timeout_keep_alive = 0.1
    with connect(live) as connection:
        connection.sendall(sent)
        assert answer(connection) == b""


def test_a_long_stream_is_not_taken_for_a_late_head(start: Start) -> None:
    live = start("abcdef", delay=0.05)
    live.server.config.timeout_keep_alive = 0.1
    reply = live.post("/v1/completions", json={"prompt": [1], "stream": True})
    assert reply.text.endswith("data: [DONE]\n\n")
