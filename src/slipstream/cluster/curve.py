"""Sockets that cross hosts: ZeroMQ's CURVE, with keys that both ends derive from one secret.

Everything is encrypted, and each end shows that it has the secret: the listener accepts the one client key, and a
client speaks only to the listener's key. Without the secret nobody can take either side's place or read along.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from zmq.utils import z85

from slipstream.errors import ConfigError

SECRET_VARIABLE = "SLIPSTREAM_CLUSTER_SECRET"
SHORTEST = 16
"""Characters that a secret must have."""

_SALT = b"slipstream cluster sockets 1"
_DOMAIN = b"slipstream"
_HEARTBEAT_MS = 2_000
_SILENCE_MS = 10_000


@dataclass(frozen=True, repr=False)
class Keys:
    """Key pairs of the listener and of its clients, in Z85."""

    listener: tuple[bytes, bytes]
    client: tuple[bytes, bytes]


@cache
def keys_of(secret: str) -> Keys:
    """The keys of a secret. Slow on purpose (scrypt, 50 ms): who listens to a handshake can try guesses.

    Raises ConfigError where ZeroMQ was built without CURVE.
    """
    if not zmq.has("curve"):
        raise ConfigError("this pyzmq was built without CURVE, which sockets between hosts need: pip install pyzmq")
    seed = hashlib.scrypt(secret.encode(), salt=_SALT, n=2**14, r=8, p=1, dklen=64)
    return Keys(_pair(seed[:32]), _pair(seed[32:]))


def read_secret(file: Path | None, environ: Mapping[str, str] = os.environ) -> str:
    """The secret in a file, or in the variable. Raises ConfigError where there is none, or a short one."""
    if file is None:
        secret, where = environ.get(SECRET_VARIABLE, "").strip(), SECRET_VARIABLE
    else:
        try:
            secret, where = file.read_text(encoding="utf-8").strip(), str(file)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the cluster's secret in {file}: {error}") from None
    if len(secret) < SHORTEST:
        raise ConfigError(
            f"workers of other hosts need a secret of at least {SHORTEST} characters, {where} has {len(secret)}: "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one for --secret-file or "
            f"{SECRET_VARIABLE}, the same on every host"
        )
    return secret


def _pair(seed: bytes) -> tuple[bytes, bytes]:
    private = z85.encode(seed)
    return zmq.curve_public(private), private


def guard_listener(socket: zmq.asyncio.Socket, secret: str) -> Door:
    """Let only clients with the secret connect to a socket that has not been bound. The door is to be closed after it.

    One listener a context: the library has one place for who asks. Must be called in a running event loop.
    """
    keys = keys_of(secret)
    door = Door(socket.context, keys.client[0])
    socket.zap_domain = _DOMAIN
    socket.curve_server = True
    socket.curve_publickey, socket.curve_secretkey = keys.listener
    _notice_silence(socket)
    return door


class Door:
    """Answers the library, which asks of each client whether it may come in (ZeroMQ's RFC 27, ZAP)."""

    def __init__(self, context: zmq.Context[Any], public: bytes) -> None:
        """`public`: the one key that may."""
        self._key = z85.decode(public)
        self._socket: zmq.asyncio.Socket = context.socket(zmq.REP)
        self._socket.bind("inproc://zeromq.zap.01")
        self._answering = asyncio.get_running_loop().create_task(self._answer(), name="slipstream-door")

    def close(self) -> None:
        """Answer no more."""
        self._answering.cancel()
        self._socket.close(linger=0)

    async def _answer(self) -> None:
        while True:
            (
                version,
                request,
                _domain,
                _address,
                _identity,
                mechanism,
                *credentials,
            ) = await self._socket.recv_multipart()
            known = mechanism == b"CURVE" and credentials == [self._key]
            status, text = (b"200", b"OK") if known else (b"400", b"another secret")
            await self._socket.send_multipart([version, request, status, text, b"", b""])


def guard_client(socket: zmq.Socket[Any], secret: str) -> None:
    """Let a socket that has not been connected speak only to a listener with the secret."""
    keys = keys_of(secret)
    socket.curve_serverkey = keys.listener[0]
    socket.curve_publickey, socket.curve_secretkey = keys.client
    _notice_silence(socket)


def is_loopback(endpoint: str) -> bool:
    """Whether an endpoint `tcp://HOST:PORT` is reached from this host alone. Raises ConfigError for another form."""
    scheme, _, address = endpoint.partition("://")
    host, colon, port = address.rpartition(":")
    if scheme != "tcp" or not colon or not host or not (port.isdecimal() or port == "*"):
        raise ConfigError(
            f"{endpoint!r} is not an address to listen on: write tcp://HOST:PORT, such as tcp://0.0.0.0:5557"
        )
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _notice_silence(socket: zmq.Socket[Any]) -> None:
    # A host that was switched off closes no connection.
    socket.heartbeat_ivl = _HEARTBEAT_MS
    socket.heartbeat_timeout = _SILENCE_MS
    socket.handshake_ivl = _SILENCE_MS
