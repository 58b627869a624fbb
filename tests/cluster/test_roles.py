"""Prefill and decode on workers of their own: who gets what, and deaths at any moment. No KV page moves here."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from slipstream.api.engine import EngineRequest, TokenOutput
from slipstream.cluster.worker_client import WorkerClient
from slipstream.errors import ConfigError
from tests.cluster.conftest import EAGER, Start, kill, outputs_of, request_of, tokens_of, until
from tests.cluster.fake_engine import FakeOptions, expected
from tests.cluster.fake_split import FACTORY
from tests.cluster.test_fleet import begin, check, held

Split = Callable[..., Awaitable[WorkerClient]]
PAIR = ("prefill", "decode")
LONG = tuple(range(300))


@pytest.fixture
def split(start: Start) -> Split:
    async def make(roles: tuple[str, ...] = PAIR, threshold: int = 100, **options: Any) -> WorkerClient:
        return await start(FakeOptions(**options), EAGER, roles, threshold=threshold, factory=FACTORY)

    return make


def long(number: int, **sampling: Any) -> EngineRequest:
    """A long prompt with a beginning of its own."""
    return request_of(number, prompt=LONG, **sampling)


def asked(client: WorkerClient) -> list[tuple[int, int]]:
    """Of each worker: prompts that it was to compute for another one, and requests that it went on with."""
    return [(slot.stats.transfer.offers, slot.stats.transfer.fetches) for slot in client._slots]


async def test_long_prompts_are_computed_elsewhere_and_short_ones_stay(split: Split) -> None:
    client = await split()
    requests = [long(1), request_of(2), long(3)]
    await check(requests, begin(client, requests))
    await until(lambda: asked(client) == [(2, 0), (0, 2)])
    # Its beginning is known to the decode worker now: there is nothing to compute elsewhere.
    again = request_of(1, prompt=(*LONG, 5), max_tokens=4)
    assert tokens_of(await outputs_of(client, again)) == expected(again)
    assert asked(client) == [(2, 0), (0, 2)]
    await until(lambda: not any(slot.tickets for slot in client._slots))


async def test_the_first_token_comes_before_the_pages_have_moved(split: Split) -> None:
    client = await split()
    stream = client.generate(long(1))
    first: TokenOutput = await anext(stream)
    assert len(first.token_ids) == 1 and first.finish_reason is None
    rest = [output async for output in stream]
    assert tokens_of([first, *rest]) == expected(long(1))


async def test_what_ends_with_its_first_token_is_not_handed_over(split: Split) -> None:
    client = await split()
    request = long(1, max_tokens=1)
    assert tokens_of(await outputs_of(client, request)) == expected(request)
    await until(lambda: asked(client)[0] == (1, 0))
    assert asked(client)[1] == (0, 0) and not any(slot.tickets for slot in client._slots)


async def test_two_by_three(split: Split) -> None:
    client = await split(("prefill", "prefill", "decode", "decode", "decode"), step_seconds=0.005)
    requests = [long(n, max_tokens=60) for n in range(12)]
    await check(requests, begin(client, requests))
    await until(lambda: sum(fetches for _, fetches in asked(client)) == 12)
    offers = [offers for offers, _ in asked(client)]
    assert offers == [6, 6, 0, 0, 0] and [fetches for _, fetches in asked(client)] == [0, 0, 4, 4, 4]


async def test_leaving_at_any_moment_frees_everything(split: Split) -> None:
    client = await split(step_seconds=0.004)
    rng = random.Random(1)
    tasks = begin(client, [long(n, max_tokens=1000) for n in range(12)])
    for task in tasks:
        await asyncio.sleep(rng.uniform(0, 0.02))
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: client.stats.running == 0)
    assert not client._flights and not client._waiting
    assert not any(slot.tickets or slot.flights for slot in client._slots)


@pytest.mark.parametrize("victims", [(0,), (2,), (0, 1, 2, 3)], ids=["prefill", "decode", "any"])
async def test_kills_at_any_moment_change_nothing(split: Split, victims: tuple[int, ...]) -> None:
    client = await split(("prefill", "prefill", "decode", "decode"), step_seconds=0.004)
    rng = random.Random(sum(victims))
    requests = [long(n, max_tokens=30 + n) if n % 4 else request_of(n, max_tokens=90) for n in range(64)]
    tasks: list[asyncio.Task] = []
    for at in range(0, 64, 8):
        tasks += begin(client, requests[at : at + 8])
        await asyncio.sleep(rng.uniform(0, 0.05))
        kill(client._slots[rng.choice(victims)].worker.pid)
    await check(requests, tasks)
    assert not client._flights and not client._waiting
    assert not any(slot.tickets or slot.flights for slot in client._slots)
    await until(lambda: all(state.state == "ready" for state in client.workers))


async def test_without_decode_workers_prefill_workers_do_all(split: Split) -> None:
    client = await split(step_seconds=0.005, exit_at_start_from=2, exit_at_start=3)
    requests = [long(n, max_tokens=80) for n in range(4)]
    tasks = begin(client, requests)
    await until(lambda: held(client)[1] == 4)
    os.kill(client.worker_pids[1], signal.SIGKILL)
    await until(lambda: client.workers[1].state == "restarting")
    requests.append(long(9))
    tasks += begin(client, requests[-1:])
    await check(requests, tasks)
    await until(lambda: "code 3" in client.workers[1].reason)
    assert client.workers[1].state == "restarting"


async def test_without_prefill_workers_decode_workers_do_all(split: Split) -> None:
    client = await split(step_seconds=0.005, exit_at_start_from=2, exit_at_start=3)
    os.kill(client.worker_pids[0], signal.SIGKILL)
    await until(lambda: client.workers[0].state == "restarting")
    requests = [long(n) for n in range(4)]
    await check(requests, begin(client, requests))


async def test_either_may_leave_and_change(split: Split) -> None:
    client = await split(("prefill", "decode", "decode"), step_seconds=0.005)
    requests = [long(n, max_tokens=100) for n in range(8)]
    tasks = begin(client, requests)
    await until(lambda: sum(held(client)[1:]) == 8)
    assert await client.drain(1, 0.05) == 4
    await client.reload(FakeOptions(step_seconds=0.004).model(), 0.05)
    await check(requests, tasks)
    assert [state.state for state in client.workers] == ["ready"] * 3
    assert not any(slot.tickets for slot in client._slots)


async def test_workers_that_do_not_match(split: Split, start: Start) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the KV pages.*a page of the KV cache holds.*pages of 32"):
        await split(decode_layout="pages of 32")
    # A worker that cannot move pages at all.
    with pytest.raises(ConfigError, match="moves no KV pages"):
        await start(FakeOptions(), EAGER, PAIR, factory="tests.cluster.fake_split:build_without")
