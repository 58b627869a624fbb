"""The parent's end of the socket: one ROUTER that all workers connect to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from slipstream.cluster.curve import guard_listener, is_loopback
from slipstream.cluster.messages import FromWorker, ToWorker
from slipstream.errors import ConfigError

logger = logging.getLogger(__name__)

IPC_PATH_LIMIT = 100
"""Bytes that fit a Unix socket's address on every system, with room to spare (107 on Linux, 103 on macOS)."""

Deliver = Callable[[FromWorker], None]

KEEPER = b"keeper:"
"""What the identities begin with of those who run workers on other hosts."""


class Post:
    """Sends to workers and hands their messages to whoever registered the sender's identity.

    Listens on a Unix socket in a new folder that only this user can enter, or on a loopback port where there are no
    Unix sockets (or their path would be too long). Messages of peers that are not registered, and bytes that are not a
    message, are logged and dropped. Must be made and used in a running event loop.

    For workers of other hosts it listens at `tcp`, such as tcp://0.0.0.0:5557, and takes only who knows the `secret`.
    """

    def __init__(self, tcp: str | None = None, secret: str | None = None) -> None:
        """Raises ConfigError for an address that cannot be listened on, or that others reach and no secret guards."""
        if tcp is not None and not is_loopback(tcp) and secret is None:
            raise ConfigError(f"{tcp} is reached from other hosts: set a secret, or listen on tcp://127.0.0.1:PORT")
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        # No limit on what waits to be sent: it is bounded by the server's admission, and a send must never block.
        self._socket.sndhwm = 0
        self._socket.linger = 0
        self._handlers: dict[bytes, Deliver] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
        self._keepers: Callable[[bytes, bytes], None] | None = None
        self._remove_folder: Callable[[], object] = lambda: None
        self._door = None if secret is None else guard_listener(self._socket, secret)
        # A keeper whose host vanished and came back is believed: it has the secret.
        self._socket.router_handover = secret is not None
        self.endpoint = self._bind() if tcp is None else self._bind_tcp(tcp)
        self._receiving = asyncio.get_running_loop().create_task(self._receive(), name="slipstream-post")

    def register(self, identity: bytes, deliver: Deliver) -> None:
        """Hand messages of this peer to `deliver` from now on."""
        self._handlers[identity] = deliver

    def forget(self, identity: bytes) -> None:
        """Drop what this peer still sends."""
        self._handlers.pop(identity, None)

    def send(self, identity: bytes, message: ToWorker) -> None:
        """Send at once, in order. A peer that is gone gets nothing: its death is noticed elsewhere."""
        self.send_bytes(identity, self._encoder.encode(message))

    def hear_keepers(self, hear: Callable[[bytes, bytes], None]) -> None:
        """Hand what those send who run workers on other hosts to `hear`, with their identity, as it came."""
        self._keepers = hear

    def send_bytes(self, identity: bytes, data: bytes) -> None:
        """The same of what is encoded already."""
        sent = asyncio.ensure_future(self._socket.send_multipart([identity, data]))
        sent.add_done_callback(_log_failure)

    async def close(self) -> None:
        """Close the socket and remove the folder."""
        self._receiving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._receiving
        self._close_sockets()
        self._remove_folder()

    def _close_sockets(self) -> None:
        if self._door is not None:
            self._door.close()
        self._context.destroy(linger=0)

    def _bind(self) -> str:
        if zmq.has("ipc"):
            folder = Path(tempfile.mkdtemp(prefix="slipstream-"))
            # Runs when the process exits without `close`, too.
            self._remove_folder = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            path = folder / "workers"
            if len(bytes(path)) <= IPC_PATH_LIMIT:
                self._socket.bind(f"ipc://{path}")
                return f"ipc://{path}"
            self._remove_folder()
        return f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"

    def _bind_tcp(self, endpoint: str) -> str:
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._close_sockets()
            raise ConfigError(f"cannot listen on {endpoint} for workers: {error}") from None
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    async def _receive(self) -> None:
        while True:
            identity, *frames = await self._socket.recv_multipart()
            if identity.startswith(KEEPER) and self._keepers is not None:
                self._keepers(identity, b"".join(frames))
                continue
            deliver = self._handlers.get(identity)
            if deliver is None:
                logger.info("dropped a message of a worker that is gone, or of a stranger")
                continue
            try:
                message = self._decoder.decode(b"".join(frames))
            except msgspec.DecodeError as error:
                logger.warning("dropped %d bytes of a worker that are not a message: %s", sum(map(len, frames)), error)
                continue
            try:
                deliver(message)
            except Exception:
                # One message must not end the delivery of all others.
                logger.exception("a %s message could not be handled", type(message).__name__)
            # A read that finds data does not wait: without this, a flood of messages would starve the readers.
            await asyncio.sleep(0)


def _log_failure(sent: asyncio.Future[Any]) -> None:
    if not sent.cancelled() and (error := sent.exception()) is not None:
        logger.warning("a message to a worker could not be sent: %s", error)
