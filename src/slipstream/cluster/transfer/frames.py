"""What two workers say on a connection for KV pages: framed messages, each with a keyed checksum.

A frame is a header, `length` bytes and a BLAKE2b of both. The key is the workers' secret; the ticket, the layout of
pages and the direction are mixed in, so a frame of another ticket, layout or side does not pass for this one's. Frames
are numbered: one that is lost, repeated or out of order is noticed. Nothing is encrypted.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from hmac import compare_digest
from time import monotonic
from typing import Any, Literal, TypeVar

import msgspec

from slipstream.api.engine import TransferFailure

_MAGIC = b"SLKV"
_HEADER = struct.Struct("<4sBIQ")
_DIGEST_BYTES = 32
_INTRODUCTION = 32
MOST_WORDS = 2**22
"""Bytes of a message that is not pages, at most: the indices of a million blocks."""


class Want(msgspec.Struct, frozen=True, tag="want"):
    """From who fetches, once: these blocks of the ticket's prompt, by index, in this order, `seconds` from now."""

    kind: str
    model: str
    layout: str
    version: str
    blocks: list[int]
    seconds: float


class Taken(msgspec.Struct, frozen=True, tag="taken"):
    """From who fetches: the last batch has come; what it took may be let go."""


class Batch(msgspec.Struct, frozen=True, tag="batch"):
    """The next `count` blocks of those wanted follow: in pieces, or to be pulled as `pull` says."""

    count: int
    pull: Any = None


class Piece(msgspec.Struct, frozen=True, tag="piece"):
    """The next frame holds layers `first` to `first + layers` of a leaf of the batch."""

    leaf: str
    first: int
    layers: int


class End(msgspec.Struct, frozen=True, tag="end"):
    """Nothing follows. `failure`: why not all blocks came, None if they did."""

    failure: TransferFailure | None = None


Reply = Batch | Piece | End
Asked = Want | Taken
_Kind = TypeVar("_Kind", Want, Taken)


class Broken(Exception):
    """A transfer that failed, for this reason."""

    def __init__(self, reason: TransferFailure, text: str) -> None:
        super().__init__(text)
        self.reason: TransferFailure = reason


@dataclass(frozen=True)
class Deadline:
    """A moment of this process's monotonic clock."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """So many seconds from now."""
        return cls(monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds that are left, 0 when none are."""
        return max(0.0, self.at - monotonic())

    @property
    def passed(self) -> bool:
        """Whether nothing is left."""
        return self.left == 0.0

    @property
    def seconds(self) -> float:
        """What is left. Raises Broken when nothing is."""
        left = self.left
        if not left:
            raise Broken("late", "the deadline passed")
        return left


class Channel:
    """One side of a connection, for one ticket. `deadline` bounds every wait."""

    def __init__(self, connection: socket.socket, secret: bytes, deadline: Deadline) -> None:
        self.deadline = deadline
        self.received = self.sent = 0
        self._connection = connection
        self._secret = blake2b(secret, digest_size=64).digest()  # a key has 64 bytes at most
        self._ticket = self._layout = bytes(16)
        self._numbers = {"to fetcher": 0, "to offerer": 0}

    def bind(self, ticket: bytes, layout: str) -> None:
        """Mix a ticket and a layout into all frames from now on. Raises Broken for what is neither."""
        try:
            self._ticket, self._layout = ticket, bytes.fromhex(layout)
        except ValueError:
            self._layout = b""
        if len(self._ticket) != 16 or len(self._layout) != 16:
            raise Broken("corrupt", "a ticket or a layout is malformed")

    def say(self, message: Asked | Reply) -> None:
        """Send a message. Raises Broken."""
        self.send(isinstance(message, Asked), [msgspec.msgpack.encode(message)])

    def hear_asked(self, kind: type[_Kind]) -> _Kind:
        """The fetcher's next message. Raises Broken for any other, and for one that was changed."""
        message: _Kind = self._hear(kind, asks=True)
        return message

    def hear(self) -> Reply:
        """The offerer's next message. Raises Broken as above."""
        reply: Reply = self._hear(Reply, asks=False)
        return reply

    def introduce(self, ticket: bytes, layout: str) -> None:
        """Tell the offerer which ticket and layout to mix in, and do so. Raises Broken."""
        self.bind(ticket, layout)
        try:
            self._connection.settimeout(self.deadline.seconds)
            self._connection.sendall(self._ticket + self._layout)
        except OSError as error:
            raise Broken("unreachable", f"the connection broke: {error}") from error

    def be_introduced(self) -> str:
        """What `introduce` said, mixed in: the ticket's id. Raises Broken."""
        said = bytearray(_INTRODUCTION)
        self._read(memoryview(said))
        self.bind(bytes(said[:16]), said[16:].hex())
        return said[:16].hex()

    def send(self, asks: bool, parts: Iterable[Any]) -> None:
        """Send bytes, from several buffers, as one frame. Raises Broken."""
        parts = [memoryview(part).cast("B") for part in parts]
        direction: Literal["to offerer", "to fetcher"] = "to offerer" if asks else "to fetcher"
        header = _HEADER.pack(_MAGIC, asks, self._numbers[direction], sum(map(len, parts)))
        self._numbers[direction] += 1
        check = self._check(header)
        for part in parts:
            check.update(part)
        try:
            for part in [memoryview(header), *parts, memoryview(check.digest())]:
                self._connection.settimeout(self.deadline.seconds)
                self._connection.sendall(part)
                self.sent += len(part)
        except TimeoutError as error:
            raise Broken("late", "the other side does not read") from error
        except OSError as error:
            raise Broken("unreachable", f"the connection broke: {error}") from error

    def receive(self, parts: list[memoryview]) -> None:
        """Read a frame of exactly these buffers' size into them. Raises Broken: they may hold anything then."""
        length, check = self._open(asks=False)
        if length != sum(map(len, parts)):
            raise Broken("corrupt", f"{length} bytes came where {sum(map(len, parts))} were promised")
        self._close(check, parts)

    def _hear(self, kind: Any, *, asks: bool) -> Any:
        length, check = self._open(asks=asks)
        if length > MOST_WORDS:
            raise Broken("corrupt", f"a message of {length} bytes")
        data = bytearray(length)
        self._close(check, [memoryview(data)])
        try:
            return msgspec.msgpack.decode(data, type=kind)
        except msgspec.DecodeError as error:
            raise Broken("corrupt", f"not a message: {error}") from error

    def _open(self, asks: bool) -> tuple[int, Any]:
        header = bytearray(_HEADER.size)
        self._read(memoryview(header))
        magic, asked, number, length = _HEADER.unpack(header)
        direction: Literal["to offerer", "to fetcher"] = "to offerer" if asks else "to fetcher"
        if magic != _MAGIC or asked != asks or number != self._numbers[direction]:
            raise Broken("corrupt", "a frame that is not the next one")
        self._numbers[direction] += 1
        return length, self._check(bytes(header))

    def _close(self, check: Any, parts: list[memoryview]) -> None:
        for part in parts:
            self._read(part)
            check.update(part)
        digest = bytearray(_DIGEST_BYTES)
        self._read(memoryview(digest))
        if not compare_digest(digest, check.digest()):
            raise Broken("corrupt", "a frame's checksum is wrong")

    def _check(self, header: bytes) -> Any:
        return blake2b(header, digest_size=_DIGEST_BYTES, key=self._secret, salt=self._ticket, person=self._layout)

    def _read(self, into: memoryview) -> None:
        while into:
            try:
                self._connection.settimeout(self.deadline.seconds)
                count = self._connection.recv_into(into)
            except TimeoutError as error:
                raise Broken("late", "the other side does not answer") from error
            except OSError as error:
                raise Broken("unreachable", f"the connection broke: {error}") from error
            if not count:
                raise Broken("unreachable", "the other side closed the connection")
            self.received += count
            into = into[count:]
