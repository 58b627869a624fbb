"""The side that computed the pages: it waits for who has a ticket, and sends them as they are computed.

Two kinds of threads. The engine's calls `open`, `over`, `drop` and, after each step, `turn`, which starts copies off
the device and never waits. A thread for each connection waits for them and sends them.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from socket import socket
from typing import Protocol

from slipstream.api.engine import TransferFailure, TransferStats
from slipstream.cluster.messages import TransferInfo
from slipstream.cluster.transfer.address import Listener
from slipstream.cluster.transfer.frames import Broken, Channel, Deadline, End, Want
from slipstream.cluster.transfer.tally import Tally
from slipstream.engine.exchange import STAGED, Exchange
from slipstream.engine.page_io import Blocks

logger = logging.getLogger(__name__)

INTRODUCTION_SECONDS = 5.0
"""What a peer has to say which ticket it has, and prove that it knows the secret."""

UNOPENED_SECONDS = 10.0
"""What a ticket may come sooner than the request that opens it: both are sent at the same time."""

PATIENCE_SECONDS = 1.0
"""What a fetch may be late for its own deadline: who waits should be the one to give up, and count it as late."""

MOST_CONNECTIONS = 64
_SPENT = 4096
_SAME = ("kind", "model", "layout", "version")


@dataclass(frozen=True)
class Part:
    """The next `count` blocks wanted, on their way off the device; or why there is no next one (None: all are sent)."""

    count: int
    blocks: Blocks | None
    failure: TransferFailure | None = None


class _Stranger(Exception):
    """Who asks has not proved to know the secret."""


class Sender(Protocol):
    """Moves one batch to the other side."""

    def send(self, channel: Channel, count: int, blocks: Blocks) -> int:
        """Send `count` blocks, which may still be computed, with all that goes before. Returns bytes. Raises Broken."""


@dataclass(eq=False)
class _Offer:
    """`wanted`: set by the connection once, the digests to send. `sent`: how many of them `turn` has given."""

    ticket: str
    digests: list[bytes]
    deadline: Deadline
    over: bool = False
    wanted: list[bytes] | None = None
    narrowed: bool = False
    sent: int = 0
    parts: queue.Queue[Part] = field(default_factory=queue.Queue)

    @property
    def remaining(self) -> list[bytes]:
        """What must be kept for it."""
        return self.digests if self.wanted is None else self.wanted[self.sent :]


class Offers:
    """All tickets that this worker offers. `info` describes it to those who fetch."""

    def __init__(
        self,
        listener: Listener,
        info: TransferInfo,
        secret: str,
        sender: Sender,
        tally: Tally,
        wake: Callable[[], None],
    ) -> None:
        """`wake()`, from any thread, has the engine's thread call `turn` soon."""
        self._listener = listener
        self._info = info
        self._secret = secret.encode()
        self._sender = sender
        self._tally = tally
        self._wake = wake
        self._offers: dict[str, _Offer] = {}
        self._spent: OrderedDict[str, None] = OrderedDict()
        self._news = threading.Condition()
        self._ended: list[str] = []
        self._staged = 0
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._closed = False
        threading.Thread(target=self._accept, name="slipstream-kv-listen", daemon=True).start()

    def open(self, ticket: str, digests: Sequence[bytes], seconds: float) -> None:
        """Offer blocks that will be computed."""
        with self._news:
            if ticket in self._spent or ticket in self._offers:
                return
            self._offers[ticket] = _Offer(ticket, list(digests), Deadline.after(seconds))
            self._news.notify_all()
        self._tally.add(TransferStats(offers=1))

    def over(self, ticket: str) -> None:
        """No more blocks of it will be computed than are now."""
        with self._news:
            if ticket in self._offers:
                self._offers[ticket].over = True

    def drop(self, ticket: str, exchange: Exchange) -> None:
        """Nobody needs it. One that is unknown yet will not be opened."""
        with self._news:
            offer = self._end(ticket)
        exchange.let_go(ticket)
        if offer is not None:
            offer.parts.put(Part(0, None, "unknown"))

    def turn(self, exchange: Exchange) -> float | None:
        """Hold what was computed, start copies of what is wanted. Returns seconds until it must be called again."""
        with self._news:
            offers, ended, self._ended = list(self._offers.values()), self._ended, []
        for ticket in ended:
            exchange.let_go(ticket)
        for offer in offers:
            if offer.deadline.passed:
                self._expire(offer, exchange)
            else:
                self._serve(offer, exchange)
        with self._news:
            return min((offer.deadline.left for offer in self._offers.values()), default=None)

    def close(self) -> None:
        """Listen no more."""
        self._closed = True
        self._listener.close()

    def _serve(self, offer: _Offer, exchange: Exchange) -> None:
        if offer.wanted is not None and not offer.narrowed:
            offer.narrowed = True
            exchange.let_go(offer.ticket)
        exchange.hold(offer.ticket, offer.remaining)
        while offer.wanted is not None:
            digests = offer.remaining[: exchange.io.most]
            digests = digests[: exchange.ready(digests)]
            if not digests:
                break
            with self._news:
                if self._staged >= STAGED or self._offers.get(offer.ticket) is not offer:
                    return
                self._staged += 1
                offer.parts.put(Part(len(digests), exchange.give(digests)))
            offer.sent += len(digests)
            exchange.let_go(offer.ticket, digests)
        if offer.wanted is not None and (offer.over or not offer.remaining):
            offer.parts.put(Part(0, None, "incomplete" if offer.remaining else None))
            with self._news:
                self._end(offer.ticket)
            exchange.let_go(offer.ticket)

    def _expire(self, offer: _Offer, exchange: Exchange) -> None:
        exchange.let_go(offer.ticket)
        with self._news:
            self._end(offer.ticket)
        if offer.wanted is None:
            self._tally.fail("expired")
        offer.parts.put(Part(0, None, "late"))

    def _end(self, ticket: str) -> _Offer | None:
        self._spent[ticket] = None
        while len(self._spent) > _SPENT:
            self._spent.popitem(last=False)
        return self._offers.pop(ticket, None)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.socket.accept()
            except OSError:
                if self._closed:
                    return
                continue
            if not self._places.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._speak, args=(connection,), name="slipstream-kv-send", daemon=True).start()

    def _speak(self, connection: socket) -> None:
        try:
            with closing(connection):
                self._answer(Channel(connection, self._secret, Deadline.after(INTRODUCTION_SECONDS)))
        except _Stranger as stranger:
            self._tally.fail("forged")
            self._wake()  # so that it is reported
            logger.warning("KV pages were asked for by somebody without the secret, or none of us: %s", stranger)
        except Broken as broken:  # whoever needed the pages counts it, once
            logger.info("KV pages were not sent: %s", broken)
        except Exception:
            logger.exception("KV pages could not be sent")
        finally:
            self._places.release()

    def _answer(self, channel: Channel) -> None:
        """One connection, from its first byte to its last. Raises Broken, and _Stranger."""
        try:
            ticket = channel.be_introduced()
            want = channel.hear_asked(Want)
        except Broken as broken:
            raise _Stranger(str(broken)) from broken
        channel.deadline = Deadline.after(want.seconds + PATIENCE_SECONDS)
        if any(getattr(want, name) != getattr(self._info, name) for name in _SAME):
            channel.say(End("mismatch"))
            raise Broken("mismatch", "another model, layout of pages or version asked for them")
        offer = self._claim(ticket, want.blocks, min(want.seconds, UNOPENED_SECONDS))
        if offer is None:
            channel.say(End("unknown"))
            raise Broken("unknown", "a ticket that is not offered, or not any more")
        self._wake()
        try:
            self._send(channel, offer)
        finally:
            with self._news:
                self._end(ticket)
                self._ended.append(ticket)
            self._drain(offer)
            self._wake()

    def _claim(self, ticket: str, blocks: list[int], seconds: float) -> _Offer | None:
        """The offer, from now on this connection's alone. None if there is none, or another had it."""
        with self._news:
            known = lambda: ticket in self._offers or ticket in self._spent  # noqa: E731
            self._news.wait_for(known, seconds)
            offer = self._offers.get(ticket)
            if offer is None or offer.wanted is not None:
                return None
            if any(not 0 <= block < len(offer.digests) for block in blocks):
                raise Broken("corrupt", "blocks that the prompt does not have are wanted")
            offer.wanted = [offer.digests[block] for block in blocks]
            return offer

    def _send(self, channel: Channel, offer: _Offer) -> None:
        while True:
            try:
                part = offer.parts.get(timeout=min(channel.deadline.seconds, offer.deadline.seconds))
            except queue.Empty:
                raise Broken("late", "the pages were not computed in time") from None
            if part.blocks is None:
                channel.say(End(part.failure))
                if part.failure is not None:
                    raise Broken(part.failure, "not all pages were there to be sent")
                return
            try:
                count = self._sender.send(channel, part.count, part.blocks)
            finally:
                self._unstage()
            self._tally.add(TransferStats(pages_sent=part.count, bytes_sent=count))

    def _unstage(self) -> None:
        with self._news:
            self._staged -= 1
        self._wake()

    def _drain(self, offer: _Offer) -> None:
        """Count what was staged for a connection that broke."""
        with suppress(queue.Empty):
            while True:
                if offer.parts.get_nowait().blocks is not None:
                    self._unstage()
