"""A connection between two processes that share a secret: whole messages, in order, each proved to be the other's.

Each side sends 16 random bytes; both derive a key for each direction from them and the secret. A message is its length,
a keyed blake2b over its place in the order and its content, and the content. So bytes that were changed, replayed,
reordered or sent by a stranger end the connection. The content can be read by others on the way.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from hashlib import blake2b

from slipstream.errors import ConfigError, SlipstreamError

MOST_BYTES = 2**26
_NONCE, _PROOF = 16, 16
_HEAD = struct.Struct("<I16s")
_LOOPBACK = ("localhost", "127.", "::1", "[::1]")
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""A machine that is gone is noticed after 25 s; where a system has no such option, after its own time."""


class LineClosed(SlipstreamError):
    """The other side is gone, or sent what does not prove its secret."""


class Line:
    """One side of a connection. One thread may send while another receives."""

    def __init__(self, connection: socket.socket, secret: str, *, accepted: bool, timeout: float) -> None:
        """Greet the other side, for `timeout` seconds. `accepted`: it connected to us. Raises LineClosed."""
        self._connection = connection
        connection.settimeout(timeout)
        own = os.urandom(_NONCE)
        try:
            connection.sendall(own)
            other = self._exactly(_NONCE)
        except OSError as error:
            raise LineClosed(f"no greeting: {error}") from error
        nonces = other + own if accepted else own + other
        key = blake2b(secret.encode()).digest()
        keys = [blake2b(nonces + way, key=key, digest_size=32).digest() for way in (b"to", b"fro")]
        self._sending, self._receiving = reversed(keys) if accepted else keys
        self._sent = self._received = 0

    def send(self, content: bytes) -> None:
        """Send a message; waits while the other side is too far behind. Raises LineClosed."""
        head = _HEAD.pack(len(content), _proof(self._sending, self._sent, content))
        self._sent += 1
        try:
            self._connection.sendall(head + content)
        except OSError as error:
            raise LineClosed(f"the connection is closed: {error}") from error

    def receive(self) -> bytes:
        """The next message. Raises LineClosed at the end, and for one that is not the other side's."""
        try:
            length, proof = _HEAD.unpack(self._exactly(_HEAD.size))
            if length > MOST_BYTES:
                raise LineClosed(f"a message of {length:,} bytes: the other side is something else")
            content = self._exactly(length)
        except OSError as error:
            raise LineClosed(f"the connection is closed: {error}") from error
        if proof != _proof(self._receiving, self._received, content):
            raise LineClosed("a message that the other side did not send: does it have the same secret?")
        self._received += 1
        return content

    def wait_for_ever(self) -> None:
        """From now on a message may be as late as it likes."""
        self._connection.settimeout(None)

    def close(self) -> None:
        """End the connection; the other side notices."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _exactly(self, size: int) -> bytes:
        data = bytearray(size)
        view, have = memoryview(data), 0
        while have < size:
            got = self._connection.recv_into(view[have:])
            if not got:
                raise LineClosed("the connection was closed")
            have += got
        return bytes(data)


def listen(endpoint: str, secret: str) -> socket.socket:
    """A socket that listens at unix:PATH or tcp://HOST:PORT.

    Raises ConfigError for an address that other machines reach without a secret, and for one that cannot be had.
    """
    kind, address = parse(endpoint)
    if kind == socket.AF_INET and not secret and not is_loopback(address[0]):
        raise ConfigError(f"{endpoint} can be reached from other machines: set a secret, which all members need")
    listening = socket.socket(kind, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        raise ConfigError(f"cannot listen at {endpoint}: {error}") from error
    return listening


def connect(endpoint: str, timeout: float) -> socket.socket:
    """A connection to who listens there. Raises OSError where nobody does."""
    kind, address = parse(endpoint)
    connection = socket.socket(kind, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return tuned(connection)


def tuned(connection: socket.socket) -> socket.socket:
    """The same, which sends at once and notices that the other machine is gone."""
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            option = getattr(socket, name, None)
            if option is not None:
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection


def parse(endpoint: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    """The kind and address of an endpoint. Raises ConfigError."""
    if endpoint.startswith("unix:"):
        return socket.AF_UNIX, endpoint.removeprefix("unix:")
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not endpoint.startswith("tcp://") or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{endpoint!r} is no endpoint: it must be tcp://HOST:PORT or unix:PATH")
    return socket.AF_INET, (host, int(port))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    return host.startswith(_LOOPBACK)


def _proof(key: bytes, place: int, content: bytes) -> bytes:
    return blake2b(place.to_bytes(8, "little") + content, key=key, digest_size=_PROOF).digest()
