"""Lines between the members of a group: what is not the other side's is noticed."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from slipstream.cluster.line import Line, LineClosed, connect, listen
from slipstream.errors import ConfigError

Pair = Callable[[], tuple[socket.socket, socket.socket]]
Lines = Callable[..., tuple[Line, Line, socket.socket, socket.socket]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """`pair()` gives two sockets that are closed after the test."""
    with ExitStack() as opened:

        def make() -> tuple[socket.socket, socket.socket]:
            one, two = socket.socketpair()
            return opened.enter_context(one), opened.enter_context(two)

        yield make


@pytest.fixture
def lines(pair: Pair) -> Lines:
    """`lines(secret, secret)` gives both ends of a connection, and their sockets."""
    return partial(_lines, pair)


def _lines(pair: Pair, to: str = "secret", fro: str = "secret") -> tuple[Line, Line, socket.socket, socket.socket]:
    one, two = pair()
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(Line, two, fro, accepted=True, timeout=5.0)
        return Line(one, to, accepted=False, timeout=5.0), accepted.result(), one, two


def test_messages_arrive_in_order_both_ways(lines: Lines) -> None:
    near, far, _, _ = lines()
    for content in (b"", b"x", bytes(100_000)):
        near.send(content)
        assert far.receive() == content
        far.send(content[::-1])
        assert near.receive() == content[::-1]
    near.close()
    with pytest.raises(LineClosed, match="closed"):
        far.receive()


def test_another_secret(lines: Lines) -> None:
    near, far, _, _ = lines(to="secret", fro="guess")
    near.send(b"join")
    with pytest.raises(LineClosed, match="same secret"):
        far.receive()


@pytest.mark.parametrize("changed", [0, 5, 20, 24])
def test_a_changed_byte(changed: int, lines: Lines, pair: Pair) -> None:
    near, far, _, raw = lines()
    near.send(b"0123456789")
    sent = bytearray(raw.recv(1000))
    sent[changed] ^= 1
    one, two = pair()
    far._connection = two
    one.sendall(sent)
    one.close()
    with pytest.raises(LineClosed):
        far.receive()


def test_a_message_twice(lines: Lines, pair: Pair) -> None:
    near, far, _, raw = lines()
    near.send(b"step 1")
    sent = raw.recv(1000)
    one, two = pair()
    far._connection = two
    one.sendall(sent + sent)
    assert far.receive() == b"step 1"
    with pytest.raises(LineClosed, match="did not send"):
        far.receive()


def test_what_is_too_long_to_be_ours(lines: Lines) -> None:
    _, far, near, _ = lines()
    near.sendall(b"\xff" * 64)
    with pytest.raises(LineClosed, match="something else"):
        far.receive()


def test_a_silent_stranger_is_not_waited_for(pair: Pair) -> None:
    _, two = pair()
    with pytest.raises(LineClosed, match="no greeting"):
        Line(two, "secret", accepted=True, timeout=0.05)


def test_other_machines_need_a_secret(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set a secret"):
        listen("tcp://0.0.0.0:0", "")
    with pytest.raises(ConfigError, match="no endpoint"):
        listen("somewhere", "secret")
    for endpoint, secret in (("tcp://127.0.0.1:0", ""), (f"unix:{tmp_path / 'plans'}", "")):
        listen(endpoint, secret).close()
    with pytest.raises(ConfigError, match="cannot listen"):
        listen(f"unix:{tmp_path / 'plans'}", "")
    with pytest.raises(OSError, match=r"refused|No such"):
        connect(f"unix:{tmp_path / 'nobody'}", 1.0)
