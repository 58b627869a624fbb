from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from slipstream.engine import page_io
from slipstream.engine.exchange import Exchange
from slipstream.engine.loop import Engine
from slipstream.engine.scheduler import Scheduler
from slipstream.errors import ConfigError
from tests.engine import drive, tiny


class Moves:
    """Pages as a dict: what `scatter` wrote into each."""

    def __init__(self) -> None:
        self.page_io: Any = SimpleNamespace(most=4)
        self.content: dict[int, Any] = {}

    def gather(self, pages: Sequence[int]) -> dict[str, Any]:
        return {"k": [self.content.get(page) for page in pages]}

    def scatter(self, pages: Sequence[int], blocks: dict[str, Any]) -> None:
        self.content.update(zip(pages, blocks["k"], strict=False))


def exchange(num_pages: int = 8) -> tuple[Exchange, Scheduler, Moves]:
    scheduler, moves = drive.scheduler(num_pages=num_pages, max_model_len=32), Moves()
    return Exchange(scheduler, moves), scheduler, moves


def test_taken_blocks_are_a_prefix_hit() -> None:
    side, scheduler, moves = exchange()
    prompt = list(range(13))
    digests = side.digests(prompt)
    assert len(digests) == 3
    assert side.missing(digests) == [0, 1, 2]
    assert side.take(digests, [0, 1, 2], {"k": "abc"})
    assert scheduler.pages.used == 0
    assert side.missing(digests) == []
    scheduler.add(drive.sequence("r", prompt))
    row = drive.only(drive.plan(scheduler))
    assert row.start == 12
    assert [moves.content[page] for page in row.pages[:3]] == ["a", "b", "c"]


def test_only_what_is_missing_is_taken_and_what_is_there_is_not_evicted_for_it() -> None:
    side, scheduler, _ = exchange(num_pages=8)
    prompt, other = list(range(16)), list(range(100, 116))
    assert side.take(side.digests(prompt), [0, 1], {"k": "ab"})
    assert side.take(side.digests(other), [0, 1, 2, 3], {"k": "wxyz"})
    assert scheduler.pages.free == 2
    assert side.missing(side.digests(prompt)) == [2, 3]
    assert side.take(side.digests(prompt), [2, 3], {"k": "cd"})
    more = list(range(200, 208))
    assert side.take(side.digests(more), [0, 1], {"k": "mn"})  # at the cost of the oldest, from its end
    assert side.missing(side.digests(prompt)) == []
    assert side.missing(side.digests(other)) == [2, 3]


def test_blocks_that_are_known_meanwhile_are_not_kept_twice() -> None:
    side, scheduler, _ = exchange()
    digests = side.digests(list(range(8)))
    assert side.take(digests, [0, 1], {"k": "ab"})
    assert side.take(digests, [0, 1], {"k": "ab"})
    assert (scheduler.pages.cached, scheduler.pages.free) == (2, 6)


def test_no_room() -> None:
    side, scheduler, moves = exchange(num_pages=8)
    scheduler.add(drive.sequence("r", 13))
    drive.run(scheduler, 1)
    assert scheduler.pages.available == 4
    digests = side.digests(list(range(20)))
    assert side.take(digests, [0, 1], {"k": "ab"})
    assert not side.take(digests, [2, 3, 4], {"k": "cde"})
    assert (scheduler.pages.used, len(moves.content)) == (4, 2)
    assert side.ready(digests) == 2
    assert side.give(digests[:2]) == {"k": ["a", "b"]}


def test_held_pages_outlive_their_sequence_until_they_are_let_go() -> None:
    side, scheduler, _ = exchange(num_pages=8)
    prompt = list(range(13))
    digests = side.digests(prompt)
    scheduler.add(drive.sequence("r", prompt, max_tokens=1))
    drive.run(scheduler, 1)
    side.hold("ticket", digests)
    scheduler.abort("r")
    assert scheduler.pages.used == side.held == 3
    assert side.take(side.digests(list(range(50, 70))), [0, 1, 2, 3, 4], {"k": "vwxyz"})
    assert side.ready(digests) == 3
    side.let_go("ticket", digests[:1])
    side.let_go("ticket")
    side.let_go("ticket")
    assert scheduler.pages.used == side.held == 0


def test_holds_end_where_they_would_take_more_than_half_of_the_pages() -> None:
    side, scheduler, _ = exchange(num_pages=8)
    for name in "abc":
        digests = side.digests([ord(name)] * 8)
        assert side.take(digests, [0, 1], {"k": "xy"})
        side.hold(name, digests)
    assert side.held == scheduler.pages.used == 4
    assert side.ready(side.digests([ord("a")] * 8)) == 2  # found as long as nobody needs the page
    assert side.let_all_go()
    assert not side.let_all_go()
    assert scheduler.pages.used == 0


def through_the_host(give: Exchange, take: Exchange, prompt: Sequence[int]) -> int:
    """Moves what `take` lacks; returns how many blocks."""
    digests = give.digests(prompt)
    missing = take.missing(digests)
    for first in range(0, len(missing), give.io.most):
        part = missing[first : first + give.io.most]
        given = jax.device_get(give.give([digests[i] for i in part]))
        assert take.take(digests, part, take.io.place(given))
    return len(missing)


def both(engine: Engine) -> tuple[Engine, Exchange]:
    assert engine.exchange is not None
    return engine, engine.exchange


def test_an_engine_goes_on_from_another_s_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """In unequal chunks; and a sequence that needs the pages that are held gets them."""
    monkeypatch.setattr(page_io, "WIDTHS", (4,))
    a, give = both(tiny.engine(exchanges=True, max_seqs=1, max_batched_tokens=8))
    b, take = both(tiny.engine(exchanges=True, max_seqs=1, max_batched_tokens=16, kv_bytes=64 * 2**10))
    prompt = [i * 5 % 211 for i in range(45)]
    expected = tiny.tokens(tiny.run(a, [tiny.request("a", prompt)])["a"])
    give.hold("t", give.digests(prompt))
    compiles = b.stats().compiles
    assert through_the_host(give, take, prompt) == 11
    assert through_the_host(give, take, prompt) == 0
    outputs = tiny.run(b, [tiny.request("b", prompt)])["b"]
    assert outputs[0].cached_tokens == 44
    assert tiny.tokens(outputs) == expected
    assert b.stats().compiles == compiles
    assert tiny.greedy(prompt, 8) == expected
    longest = [(i * 3 + 1) % 211 for i in range(b.info.max_model_len - 8)]
    take.hold("t", take.digests(prompt))
    assert take.held == 11
    assert len(tiny.tokens(tiny.run(b, [tiny.request("c", longest)])["c"])) == 8
    assert take.held == 0  # or it would wait for ever
    assert b.stats().pages_used == 0


def test_engines_that_cannot_exchange_say_so() -> None:
    with pytest.raises(ConfigError, match="one process and one replica"):
        tiny.engine(exchanges=True, prefix_caching=False)
