"""The side that needs the pages: it asks for those that it lacks, checks what comes, and hands it to its engine.

A thread for each of the fetches under way waits for the network; the engine's calls `start`, `drop` and `turn`, which
writes what has come into the cache.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from socket import SHUT_RDWR, socket
from time import monotonic
from typing import NamedTuple, Protocol

from slipstream.api.engine import TransferStats
from slipstream.cluster.messages import Ticket, TransferInfo
from slipstream.cluster.transfer.address import connect
from slipstream.cluster.transfer.frames import Batch, Broken, Channel, Deadline, End, Want
from slipstream.cluster.transfer.tally import Tally
from slipstream.engine.exchange import STAGED, Exchange
from slipstream.engine.page_io import Blocks
from slipstream.errors import ConfigError

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 16


class Receiver(Protocol):
    """Brings one batch from the other side."""

    def receive(self, channel: Channel, batch: Batch) -> Blocks:
        """The batch that was announced, checked and placed. Raises Broken."""


@dataclass(eq=False)
class _Fetch:
    """`over`: it has ended, and what came of it was taken if `pending` is 0."""

    ticket: Ticket
    digests: list[bytes]
    wanted: list[int]
    deadline: Deadline
    over: bool = False
    pending: int = 0
    dropped: bool = False
    connection: socket | None = None
    started: float = field(default_factory=monotonic)


class _Arrived(NamedTuple):
    fetch: _Fetch
    indices: list[int]
    blocks: Blocks


class Fetches:
    """All tickets that this worker fetches. `info` describes it."""

    def __init__(
        self, info: TransferInfo, secret: str, receiver: Receiver, most: int, tally: Tally, wake: Callable[[], None]
    ) -> None:
        """`most`: blocks in a batch, at most. `wake()`, from any thread, has the engine's call `turn` soon."""
        self._info = info
        self._secret = secret.encode()
        self._receiver = receiver
        self._most = most
        self._tally = tally
        self._wake = wake
        self._fetches: dict[str, _Fetch] = {}
        self._arrived: queue.SimpleQueue[_Arrived] = queue.SimpleQueue()
        self._room = threading.BoundedSemaphore(STAGED)
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(MOST_AT_ONCE, "slipstream-kv-fetch")

    def start(self, ticket: Ticket, digests: Sequence[bytes], wanted: Sequence[int]) -> None:
        """Begin to fetch the blocks `wanted`, by index, of the prompt with these digests."""
        if ticket.id in self._fetches:
            return
        fetch = _Fetch(ticket, list(digests), list(wanted), Deadline.after(ticket.deadline_seconds))
        self._fetches[ticket.id] = fetch
        self._tally.add(TransferStats(fetches=1))
        self._pool.submit(self._run, fetch)

    def under_way(self, ticket: str) -> bool:
        """Whether more may still come of it."""
        fetch = self._fetches.get(ticket)
        return fetch is not None and not fetch.deadline.passed and (not fetch.over or fetch.pending > 0)

    def drop(self, ticket: str) -> None:
        """Nobody waits for it any more."""
        fetch = self._fetches.pop(ticket, None)
        if fetch is not None:
            self._cut(fetch)

    def turn(self, exchange: Exchange) -> float | None:
        """Write what has come. Returns seconds until it must be called again, for fetches that hang."""
        while True:
            try:
                fetch, indices, blocks = self._arrived.get_nowait()
            except queue.Empty:
                break
            self._room.release()
            taken = fetch.dropped or exchange.take(fetch.digests, indices, blocks)
            with self._lock:
                fetch.pending -= 1
            if not taken:
                self._tally.fail("no_room")
                self._cut(fetch)
        for fetch in list(self._fetches.values()):
            if fetch.deadline.passed and not fetch.over:
                self._tally.fail("late")  # its thread may hang in a library: nobody waits for it
            if fetch.deadline.passed or fetch.dropped:
                self.drop(fetch.ticket.id)
        return min((fetch.deadline.left for fetch in self._fetches.values()), default=None)

    def close(self) -> None:
        """End all."""
        for ticket in list(self._fetches):
            self.drop(ticket)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _cut(self, fetch: _Fetch) -> None:
        """End a fetch from outside: what it says afterwards counts for nothing."""
        with self._lock:
            fetch.dropped = fetch.over = True
            if fetch.connection is not None:
                try:
                    fetch.connection.shutdown(SHUT_RDWR)
                except OSError:
                    logger.debug("a connection for KV pages was closed already")

    def _run(self, fetch: _Fetch) -> None:
        try:
            self._fetch(fetch)
        except Broken as broken:
            if not fetch.dropped:
                self._tally.fail(broken.reason)
                logger.warning("KV pages could not be fetched and are computed: %s", broken)
        except Exception:
            self._tally.fail("corrupt")
            logger.exception("KV pages could not be fetched and are computed")
        finally:
            with self._lock:
                fetch.over, fetch.connection = True, None
            self._tally.add(TransferStats(seconds=monotonic() - fetch.started))
            self._wake()

    def _fetch(self, fetch: _Fetch) -> None:
        """One ticket, from its connection to the last block. Raises Broken."""
        ticket, info = fetch.ticket, self._info
        if ticket.kind != info.kind:
            raise Broken("mismatch", f"pages are offered by {ticket.kind}, this worker fetches by {info.kind}")
        try:
            connection = connect(ticket.endpoint, fetch.deadline.seconds)
        except (OSError, ConfigError) as error:
            raise Broken("unreachable", f"{ticket.endpoint}: {error}") from error
        with closing(connection):
            with self._lock:
                if fetch.dropped:
                    return
                fetch.connection = connection
            channel = Channel(connection, self._secret, fetch.deadline)
            try:
                channel.introduce(bytes.fromhex(ticket.id), info.layout)
            except ValueError as error:
                raise Broken("corrupt", f"{ticket.id!r} is no ticket") from error
            facts = (info.kind, info.model, info.layout, info.version)
            channel.say(Want(*facts, fetch.wanted, fetch.deadline.seconds))
            self._read(fetch, channel)

    def _read(self, fetch: _Fetch, channel: Channel) -> None:
        done = 0
        while True:
            message = channel.hear()
            if isinstance(message, End):
                missing = len(fetch.wanted) - done
                if message.failure is not None or missing:
                    raise Broken(message.failure or "incomplete", f"{missing} blocks did not come ({message.failure})")
                return
            if not isinstance(message, Batch) or not 1 <= message.count <= min(self._most, len(fetch.wanted) - done):
                raise Broken("corrupt", f"{message} was not due")
            if not self._room.acquire(timeout=fetch.deadline.seconds):
                raise Broken("late", "the engine did not take what has come")
            before = channel.received
            try:
                blocks = self._receiver.receive(channel, message)
                indices = fetch.wanted[done : done + message.count]
            except BaseException:
                self._room.release()
                raise
            with self._lock:
                fetch.pending += 1
            self._arrived.put(_Arrived(fetch, indices, blocks))
            done += message.count
            count = channel.received - before
            self._tally.add(TransferStats(pages_received=message.count, bytes_received=count))
            self._wake()
