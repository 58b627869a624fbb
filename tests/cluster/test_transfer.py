"""Both sides of a transfer over real sockets, with engines that are dicts, and a peer in between that meddles."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from slipstream.api.engine import TransferFailure
from slipstream.cluster.messages import Ticket, TransferInfo, new_ticket_id
from slipstream.cluster.transfer import offers as offers_module
from slipstream.cluster.transfer.address import Listener, connect, parse
from slipstream.cluster.transfer.fetches import Fetches
from slipstream.cluster.transfer.offers import Offers
from slipstream.cluster.transfer.sockets import SocketReceiver, SocketSender, pieces
from slipstream.cluster.transfer.tally import Tally
from slipstream.engine.page_io import BlockShape
from slipstream.errors import ConfigError

SHAPE = BlockShape(layers=3, page_size=4, kv_heads=2, head_dim=8, dtype=np.dtype(ml_dtypes.bfloat16), values=True)
MOST = 4
PROMPT = [bytes([i]) * 32 for i in range(10)]


_listeners: list[Listener] = []


def listening(secret: str | None) -> Listener:
    """On a unix socket, until the test is over."""
    _listeners.append(Listener(None, secret))
    return _listeners[-1]


@pytest.fixture(autouse=True)
def nobody_listens_afterwards() -> Iterator[None]:
    yield
    while _listeners:
        _listeners.pop().close()


def block(digest: bytes) -> dict[str, np.ndarray]:
    """What a page of that name holds."""
    rng = np.random.default_rng(digest[0])
    return {
        name: rng.integers(-99, 99, shape[:1] + shape[2:]).astype(dtype)
        for name, (shape, dtype) in SHAPE.leaves(1).items()
    }


class Cache:
    """An `Exchange` without an engine."""

    def __init__(self, digests: Sequence[bytes] = ()) -> None:
        self.io: Any = SimpleNamespace(
            shape=SHAPE, most=MOST, width_for=lambda n: MOST, place=lambda blocks: dict(blocks)
        )
        self.pages = {digest: block(digest) for digest in digests}
        self.holds: dict[str, set[bytes]] = {}
        self.full = False

    def ready(self, digests: Sequence[bytes]) -> int:
        return next((i for i, digest in enumerate(digests) if digest not in self.pages), len(digests))

    def give(self, digests: Sequence[bytes]) -> dict[str, np.ndarray]:
        out = SHAPE.empty(MOST)
        for i, digest in enumerate(digests):
            for name, array in self.pages[digest].items():
                out[name][:, i] = array
        return out

    def take(self, prompt: Sequence[bytes], indices: Sequence[int], blocks: dict[str, np.ndarray]) -> bool:
        for place, i in enumerate(indices):
            self.pages[prompt[i]] = {name: array[:, place] for name, array in blocks.items()}
        return not self.full

    def hold(self, name: str, digests: Sequence[bytes]) -> None:
        self.holds.setdefault(name, set()).update(d for d in digests if d in self.pages)

    def let_go(self, name: str, digests: Sequence[bytes] | None = None) -> None:
        left = set() if digests is None else self.holds.get(name, set()) - set(digests)
        self.holds[name] = left
        if not left:
            del self.holds[name]

    def right(self) -> bool:
        return all(
            np.array_equal(array, block(digest)[name])
            for digest, page in self.pages.items()
            for name, array in page.items()
        )


class Pair:
    """P and D, on a unix socket; `step` is a turn of both engines."""

    def __init__(self, secret: str = "s", other_secret: str | None = None, **info: str) -> None:
        self.p, self.d = Cache(PROMPT), Cache()
        self.sent, self.received = Tally(), Tally()
        self.woken = threading.Event()
        self.listener = listening(secret)
        facts = {"endpoint": self.listener.endpoint, "kind": "socket", "model": "m", "layout": SHAPE.digest()}
        mine = TransferInfo(**facts, secret_needed=False, version="1")  # type: ignore[arg-type]
        other = TransferInfo(**{**facts, "version": "1", **info}, secret_needed=False)  # type: ignore[arg-type]
        wake = self.woken.set
        self.offers = Offers(self.listener, mine, secret, SocketSender(SHAPE), self.sent, wake)
        own = secret if other_secret is None else other_secret
        self.fetches = Fetches(other, own, SocketReceiver(self.d.io), MOST, self.received, wake)

    def fetch(self, wanted: Sequence[int], *, seconds: float = 60, endpoint: str | None = None) -> str:
        ticket = new_ticket_id()
        self.offers.open(ticket, PROMPT, seconds + 5)
        self.fetches.start(
            Ticket(id=ticket, endpoint=endpoint or self.listener.endpoint, kind="socket", deadline_seconds=seconds),
            PROMPT, wanted,
        )  # fmt: skip
        return ticket

    def step(self) -> None:
        self.woken.wait(0.05)
        self.woken.clear()
        self.fetches.turn(self.d)  # type: ignore[arg-type]
        self.offers.turn(self.p)  # type: ignore[arg-type]

    def until(self, done: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, (self.failures, self.sent.stats)
            self.step()

    def run(self, ticket: str) -> None:
        self.until(lambda: not self.fetches.under_way(ticket))

    @property
    def failures(self) -> dict[TransferFailure, int]:
        return self.received.stats.failures


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.offers.close()
    pair.fetches.close()


def test_the_blocks_that_are_wanted_come_whole(pair: Pair) -> None:
    pair.run(pair.fetch([1, 2, 3, 5, 6, 7, 9]))
    assert set(pair.d.pages) == {PROMPT[i] for i in (1, 2, 3, 5, 6, 7, 9)}
    assert pair.d.right()
    pair.until(lambda: not pair.p.holds)
    assert not pair.failures and not pair.sent.stats.failures
    got, sent = pair.received.stats, pair.sent.stats
    assert (got.fetches, sent.offers) == (1, 1)
    assert got.pages_received == sent.pages_sent == 7
    assert 0 < 7 * SHAPE.bytes_per_page < got.bytes_received <= sent.bytes_sent
    assert got.seconds > 0


def test_blocks_come_while_others_are_computed(pair: Pair) -> None:
    later = {digest: pair.p.pages.pop(digest) for digest in PROMPT[3:]}
    ticket = pair.fetch(range(10))
    pair.until(lambda: len(pair.d.pages) == 3)
    assert pair.fetches.under_way(ticket)
    for digest in PROMPT[3:]:
        pair.p.pages[digest] = later[digest]
        pair.step()
    pair.run(ticket)
    assert len(pair.d.pages) == 10 and pair.d.right()


def test_nothing_moves_where_nothing_lacks(pair: Pair) -> None:
    pair.run(pair.fetch([]))
    pair.until(lambda: not pair.p.holds)
    assert pair.received.stats.bytes_received == 0 and not pair.failures


def test_a_prefill_that_ends_early(pair: Pair) -> None:
    for digest in PROMPT[6:]:
        del pair.p.pages[digest]
    ticket = pair.fetch(range(10))
    pair.until(lambda: len(pair.d.pages) == 6)
    pair.offers.over(ticket)
    pair.run(ticket)
    assert pair.failures == {"incomplete": 1} and pair.d.right()
    pair.until(lambda: not pair.p.holds)


def test_a_ticket_is_good_for_one_fetch(pair: Pair) -> None:
    ticket = pair.fetch([0])
    pair.run(ticket)
    again = Pair()
    again.fetches.start(Ticket(id=ticket, endpoint=pair.listener.endpoint, kind="socket"), PROMPT, [1])
    pair.offers.open(ticket, PROMPT, 10)  # not even if it is offered again
    pair.until(lambda: not again.fetches.under_way(ticket))
    assert again.failures == {"unknown": 1}
    assert not pair.sent.stats.failures  # who needs the pages counts it


def test_a_ticket_nobody_made_or_that_was_dropped(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers_module, "UNOPENED_SECONDS", 0.1)
    stranger = Ticket(id=new_ticket_id(), endpoint=pair.listener.endpoint, kind="socket")
    pair.fetches.start(stranger, PROMPT, [1])
    pair.run(stranger.id)
    ticket = new_ticket_id()
    pair.offers.drop(ticket, pair.p)  # type: ignore[arg-type]
    pair.offers.open(ticket, PROMPT, 10)
    pair.fetches.start(Ticket(id=ticket, endpoint=pair.listener.endpoint, kind="socket"), PROMPT, [1])
    pair.run(ticket)
    assert pair.failures == {"unknown": 2} and not pair.d.pages


def test_a_ticket_may_come_before_its_request(pair: Pair) -> None:
    ticket = Ticket(id=new_ticket_id(), endpoint=pair.listener.endpoint, kind="socket")
    pair.fetches.start(ticket, PROMPT, [0, 1])
    time.sleep(0.1)
    pair.offers.open(ticket.id, PROMPT, 10)
    pair.run(ticket.id)
    assert len(pair.d.pages) == 2 and not pair.failures


def test_an_offer_that_nobody_wants_is_let_go(pair: Pair) -> None:
    pair.offers.open(new_ticket_id(), PROMPT, 1.0)
    pair.step()
    assert pair.p.holds
    pair.until(lambda: not pair.p.holds)
    pair.until(lambda: pair.sent.stats.failures == {"expired": 1})


@pytest.mark.parametrize("different", ["model", "layout", "version"])
def test_another_model_layout_or_version_is_refused(different: str) -> None:
    pair = Pair(**{different: "ab" * 16})
    pair.run(pair.fetch([0]))
    assert pair.failures == {"mismatch": 1} and not pair.d.pages


def test_another_kind_is_not_even_asked() -> None:
    pair = Pair(kind="jax")
    pair.run(pair.fetch([0]))
    assert pair.failures == {"mismatch": 1}


def test_somebody_without_the_secret() -> None:
    pair = Pair(other_secret="another")
    pair.run(pair.fetch([0]))
    assert pair.failures == {"unreachable": 1} and not pair.d.pages
    pair.until(lambda: pair.sent.stats.failures == {"forged": 1})


def test_garbage_and_silence(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers_module, "INTRODUCTION_SECONDS", 1.0)
    for said in (b"GET / HTTP/1.1\r\n\r\n" * 9, b"\0" * 300, b""):
        with closing(connect(pair.listener.endpoint, 5)) as stranger:
            stranger.sendall(said)
            with suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
    pair.run(pair.fetch([0, 1]))
    assert len(pair.d.pages) == 2
    pair.until(lambda: pair.sent.stats.failures == {"forged": 3})


def test_no_room_in_the_cache(pair: Pair) -> None:
    pair.d.full = True
    pair.run(pair.fetch(range(10)))
    assert pair.failures == {"no_room": 1}


def test_a_peer_that_dies_or_never_was(pair: Pair) -> None:
    pair.run(pair.fetch([0], endpoint="unix:/nowhere/at/all"))
    assert pair.failures == {"unreachable": 1}
    for digest in PROMPT[2:]:
        del pair.p.pages[digest]
    ticket = pair.fetch(range(10), seconds=0.5)
    pair.run(ticket)  # P computes nothing more, and says nothing
    assert pair.failures == {"unreachable": 1, "late": 1}
    assert pair.d.right()
    pair.until(lambda: ticket not in pair.p.holds)


class Between:
    """Forwards D's bytes to P, and P's through `meddle`, which gets all that P says at once."""

    def __init__(self, to: str, meddle: Callable[[bytes], Sequence[bytes | float]]) -> None:
        self.listener = listening(None)
        self._to, self._meddle = to, meddle
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        d, _ = self.listener.socket.accept()
        with closing(d), closing(connect(self._to, 5)) as p:
            threading.Thread(target=self._forward, args=(d, p), daemon=True).start()
            said = b""
            while chunk := p.recv(1 << 16):
                said += chunk
            for part in self._meddle(said):
                if isinstance(part, float):
                    time.sleep(part)
                    continue
                with suppress(OSError):  # it may have noticed already
                    d.sendall(part)
            with suppress(OSError):
                d.shutdown(socket.SHUT_RDWR)  # the other thread reads: closing alone would say nothing

    @staticmethod
    def _forward(d: socket.socket, p: socket.socket) -> None:
        try:
            while chunk := d.recv(1 << 16):
                p.sendall(chunk)
        except OSError:
            return


def frames(said: bytes) -> list[bytes]:
    """Headers have 17 bytes, the last 8 of them the length of what follows before the checksum of 32."""
    out = []
    while said:
        end = 17 + int.from_bytes(said[9:17], "little") + 32
        out.append(said[:end])
        said = said[end:]
    return out


def changed(said: bytes, at: int) -> bytes:
    return said[:at] + bytes([said[at] ^ 1]) + said[at + 1 :]


MEDDLING: dict[str, tuple[Callable[[bytes], Sequence[bytes | float]], TransferFailure]] = {
    "a bit of the first header": (lambda said: [changed(said, 6)], "corrupt"),
    "a bit of a page": (lambda said: [changed(said, len(said) // 2)], "corrupt"),
    "a bit of a length": (lambda said: [changed(said, 10)], "corrupt"),
    "a bit of a checksum": (lambda said: [changed(said, len(frames(said)[0]) - 1)], "corrupt"),
    "the last bit": (lambda said: [changed(said, len(said) - 1)], "corrupt"),
    "truncated": (lambda said: [said[: len(said) // 2]], "unreachable"),
    "the end is missing": (lambda said: frames(said)[:-1], "unreachable"),
    "a frame is missing": (lambda said: frames(said)[:3] + frames(said)[4:], "corrupt"),
    "a frame comes twice": (lambda said: frames(said)[:3] + frames(said)[2:], "corrupt"),
    "two frames change places": (lambda said: [*frames(said)[:2], *frames(said)[3:1:-1], *frames(said)[4:]], "corrupt"),
    "late": (lambda said: [said[:200], 1.2, said[200:]], "late"),
    "nothing": (lambda said: [], "unreachable"),
}


@pytest.mark.parametrize("what", MEDDLING)
def test_whatever_is_changed_is_noticed_and_counted_once(pair: Pair, what: str) -> None:
    meddle, reason = MEDDLING[what]
    between = Between(pair.listener.endpoint, meddle)
    pair.run(pair.fetch(range(10), seconds=1.0 if reason == "late" else 60, endpoint=between.listener.endpoint))
    assert pair.failures == {reason: 1}
    assert pair.d.right()  # what came before the change may have been taken


def test_a_recorded_transfer_is_no_good_for_another_ticket(pair: Pair) -> None:
    recorded: list[bytes] = []
    first = Between(pair.listener.endpoint, lambda said: [recorded.append(said) or said])  # type: ignore[func-returns-value]
    pair.run(pair.fetch([0, 1], endpoint=first.listener.endpoint))
    assert not pair.failures
    second = Between(pair.listener.endpoint, lambda said: recorded)
    pair.d.pages.clear()
    pair.run(pair.fetch([0, 1], endpoint=second.listener.endpoint))
    assert pair.failures == {"corrupt": 1} and not pair.d.pages


def test_pieces_cover_every_layer_once() -> None:
    shape = BlockShape(30, 16, 3, 64, np.dtype(np.int8), True)
    covered = [(p.leaf, layer) for p in pieces(shape, 400) for layer in range(p.first, p.first + p.layers)]
    assert sorted(covered) == sorted((leaf, layer) for leaf in shape.leaves(1) for layer in range(30))
    assert len(list(pieces(shape, 400))) > 4


@pytest.mark.parametrize("endpoint", ["tcp://0.0.0.0:0", "tcp://[::]:0", "tcp://192.0.2.1:7000"])
def test_beyond_this_machine_only_with_a_secret(endpoint: str) -> None:
    for secret in (None, ""):
        with pytest.raises(ConfigError, match="one secret, or listen on"):
            Listener(endpoint, secret)


def test_where_it_listens() -> None:
    private, local, wide = Listener(None, None), Listener("tcp://127.0.0.1:0", None), Listener("tcp://0.0.0.0:0", "s")
    assert private.endpoint.startswith("unix:/") and not private.beyond
    assert parse(local.endpoint)[1][1] > 0 and not local.beyond  # type: ignore[operator]
    assert wide.beyond and socket.gethostname() in wide.endpoint
    for listener in (private, wide):
        listener.close()
    with pytest.raises(ConfigError, match="cannot be offered"):
        Listener(local.endpoint, None)
    local.close()


@pytest.mark.parametrize(
    "address", ["", "tcp:1", "tcp://host", "tcp://host:99999", "unix:", "http://a:1", "unix:" + "x" * 200]
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ConfigError):
        parse(address)
