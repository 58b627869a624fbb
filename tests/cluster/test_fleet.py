"""Several workers behind one client, in real processes that die."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time

import pytest

from slipstream.api.engine import EngineRequest
from slipstream.cluster.config import RestartPolicy
from slipstream.cluster.worker_client import WorkerClient
from slipstream.errors import Conflict, NotFound, RequestFailed
from slipstream.routing import BLOCK_TOKENS
from tests.cluster.conftest import EAGER, Start, alive, kill, outputs_of, request_of, tokens_of, until
from tests.cluster.fake_engine import POISON, FakeOptions, expected

TWO = ("both", "both")
THREE = ("both", "both", "both")


def begin(client: WorkerClient, requests: list[EngineRequest]) -> list[asyncio.Task]:
    return [asyncio.create_task(outputs_of(client, request)) for request in requests]


async def check(requests: list[EngineRequest], tasks: list[asyncio.Task]) -> None:
    for request, outputs in zip(requests, await asyncio.gather(*tasks), strict=True):
        assert tokens_of(outputs) == expected(request)
        assert outputs[-1].finish_reason == "length"


def held(client: WorkerClient) -> list[int]:
    return [state.requests for state in client.workers]


async def test_requests_spread_and_statistics_add_up(start: Start) -> None:
    client = await start(FakeOptions(step_seconds=0.005), roles=THREE)
    requests = [request_of(n, max_tokens=40) for n in range(9)]
    tasks = begin(client, requests)
    await until(lambda: sum(held(client)) == 9)
    assert held(client) == [3, 3, 3] and len(set(client.worker_pids)) == 3
    await check(requests, tasks)
    await until(lambda: client.stats.running == 0 and client.stats.generation_tokens == 9 * 40)
    assert client.info.max_seqs == 3 * client._slots[0].info.max_seqs


async def test_requests_of_one_beginning_stay_together(start: Start) -> None:
    client = await start(FakeOptions(step_seconds=0.005), roles=TWO)
    long = tuple(range(8 * BLOCK_TOKENS))

    def asks(number: int, salt: int) -> EngineRequest:
        request = request_of(number, max_tokens=60)
        return EngineRequest(id=request.id, prompt_token_ids=[salt, *long, number], sampling=request.sampling)

    requests = [asks(0, 1), asks(1, 2), asks(2, 2), asks(3, 1), asks(4, 1)]
    tasks = begin(client, requests)
    await until(lambda: sum(held(client)) == 5)
    assert held(client) == [3, 2]
    await check(requests, tasks)
    # What followed is part of the conversation: the next turn is sent after it.
    after = EngineRequest(
        id="next",
        prompt_token_ids=[*requests[1].prompt_token_ids, *expected(requests[1]), 5],
        sampling=asks(5, 0).sampling,
    )
    tasks = begin(client, [after])
    await until(lambda: sum(held(client)) == 1)
    assert held(client) == [0, 1]
    await check([after], tasks)


async def test_a_death_is_answered_by_the_other_worker_at_once(start: Start) -> None:
    # A restart takes longer than all that follows.
    client = await start(FakeOptions(step_seconds=0.005), RestartPolicy(delays=(30.0,)), roles=TWO)
    requests = [request_of(n, max_tokens=150) for n in range(16)]
    tasks = begin(client, requests)
    await until(lambda: client.stats.steps > 10)
    os.kill(client.worker_pids[0], signal.SIGKILL)
    await check(requests, tasks)
    assert client.replayed == 8 and client.restarts == 0 and client.ready
    [dead, living] = client.workers
    assert dead.state == "restarting" and living.state == "ready"
    assert "SIGKILL" in dead.reason and "30 s" in dead.reason


async def test_kills_at_random_times(start: Start) -> None:
    client = await start(FakeOptions(step_seconds=0.004, start_seconds=0.05), roles=THREE)
    requests = [request_of(n, max_tokens=100 + 5 * n) for n in range(64)]
    tasks = begin(client, requests)
    rng = random.Random(7)
    for _ in range(6):
        await asyncio.sleep(rng.uniform(0.02, 0.3))
        kill(rng.choice(client.worker_pids))
    await check(requests, tasks)
    await until(lambda: all(state.state == "ready" for state in client.workers))
    assert held(client) == [0, 0, 0] and not client._flights and not client._waiting


async def test_one_that_crashes_for_ever_is_left_out(start: Start) -> None:
    policy = RestartPolicy(delays=(0.0, 0.05), max_restarts=2)
    client = await start(FakeOptions(error_at_start="OutOfMemory", exit_at_start_from=2), policy, roles=TWO)
    os.kill(client.worker_pids[0], signal.SIGKILL)
    await until(lambda: client.workers[0].state == "lost")
    assert "what a person should read" in client.workers[0].reason
    assert client.ready and client.failure is None
    request = request_of(1)
    assert tokens_of(await outputs_of(client, request)) == expected(request)
    os.kill(client.worker_pids[1], signal.SIGKILL)
    await until(lambda: client.failure is not None)
    with pytest.raises(RequestFailed, match="what a person should read"):
        await outputs_of(client, request_of(2))


async def test_a_poisonous_request_fails_and_takes_no_other_along(start: Start) -> None:
    policy = RestartPolicy(delays=(0.0,), max_restarts=50)
    client = await start(FakeOptions(step_seconds=0.004), policy, roles=TWO)
    requests = [request_of(n, max_tokens=200) for n in range(8)]
    tasks = begin(client, requests)
    await until(lambda: client.stats.steps > 3)
    with pytest.raises(RequestFailed, match="3 times in a row with it"):
        await outputs_of(client, request_of(99, prompt=(POISON,)))
    await check(requests, tasks)


async def test_one_that_cannot_start_ends_all(start: Start) -> None:
    with pytest.raises(Exception, match="what a person should read"):
        await start(FakeOptions(error_at_start="ConfigError"), roles=THREE)


async def test_drain_lets_requests_finish(start: Start) -> None:
    client = await start(FakeOptions(step_seconds=0.005), roles=TWO)
    requests = [request_of(n, max_tokens=60) for n in range(6)]
    tasks = begin(client, requests)
    await until(lambda: client.stats.steps > 3)
    pid = client.worker_pids[0]
    leaving = asyncio.create_task(client.drain(0, 20.0))
    await until(lambda: client.workers[0].state == "draining")
    with pytest.raises(Conflict, match="being changed"):
        await client.reload(None, 1.0)
    later = [request_of(n, max_tokens=20) for n in range(10, 16)]
    more = begin(client, later)
    assert await leaving == 0
    assert client.workers[0].state == "left" and not alive(pid)
    await check([*requests, *later], [*tasks, *more])
    with pytest.raises(Conflict, match="last one"):
        await client.drain(1, 1.0)
    with pytest.raises(NotFound, match="0 to 1"):
        await client.drain(2, 1.0)
    # It may come back.
    await client.reload(None, 1.0, 0)
    assert [state.state for state in client.workers] == ["ready", "ready"] and client.restarts == 0


async def test_drain_moves_what_takes_too_long(start: Start) -> None:
    client = await start(FakeOptions(step_seconds=0.005), roles=TWO)
    requests = [request_of(n, max_tokens=200) for n in range(6)]
    tasks = begin(client, requests)
    await until(lambda: client.stats.steps > 3)
    began = time.monotonic()
    assert await client.drain(1, 0.1) == 3
    assert time.monotonic() - began < 0.8, "six requests take a second"
    assert held(client) == [6, 0]
    await check(requests, tasks)


@pytest.mark.parametrize("roles", [("both",), THREE])
async def test_reload_loses_no_request(start: Start, roles: tuple[str, ...]) -> None:
    client = await start(FakeOptions(step_seconds=0.004, start_seconds=0.1), roles=roles)
    requests = [request_of(n, max_tokens=80) for n in range(12)]
    tasks = begin(client, requests)
    await until(lambda: client.stats.steps > 3)
    before = client.worker_pids
    changed = asyncio.create_task(client.reload(FakeOptions(step_seconds=0.003).model(), 0.1))
    while not changed.done():
        requests.append(request_of(len(requests), max_tokens=30))
        tasks += begin(client, requests[-1:])
        await asyncio.sleep(0.02)
    await changed
    await check(requests, tasks)
    assert not set(before) & set(client.worker_pids)
    assert all("0.003" in state.model for state in client.workers)
    # A new process has the new weights too.
    os.kill(client.worker_pids[0], signal.SIGKILL)
    await until(lambda: client.restarts == 1 and client.workers[0].state == "ready")
    assert "0.003" in client._slots[0].model


async def test_a_reload_that_fails_changes_nothing(start: Start) -> None:
    client = await start(FakeOptions(step_seconds=0.004), roles=TWO)
    requests = [request_of(n, max_tokens=100) for n in range(8)]
    tasks = begin(client, requests)
    with pytest.raises(RequestFailed, match=r"worker 0 could not start.*what a person should read"):
        await client.reload(FakeOptions(error_at_start="CheckpointError").model(), 0.05)
    await until(lambda: all(state.state == "ready" for state in client.workers))
    await check(requests, tasks)
    with pytest.raises(RequestFailed, match="vocab_size 7, and worker 0 50000"):
        await client.reload(FakeOptions(vocab_size=7).model(), 0.05)
    await until(lambda: all(state.state == "ready" for state in client.workers))
    assert {state.model for state in client.workers} == {FakeOptions(step_seconds=0.004).model()}


async def test_close_during_a_change(start: Start) -> None:
    client = await start(FakeOptions(step_seconds=0.01, start_seconds=0.2), EAGER, roles=TWO)
    tasks = begin(client, [request_of(n, max_tokens=10_000) for n in range(4)])
    changed = asyncio.create_task(client.reload(None, 0.05))
    await until(lambda: client.workers[0].state == "reloading")
    await client.close()
    for task in tasks:
        with pytest.raises(RequestFailed, match="shutting down"):
            await task
    with pytest.raises(asyncio.CancelledError):
        await changed
    assert not any(alive(pid) for pid in client.worker_pids)


async def test_a_worker_stays_on_its_processors(start: Start) -> None:
    processor = max(os.sched_getaffinity(0))
    client = await start(processors=(processor,))
    assert os.sched_getaffinity(client.worker_pids[0]) == {processor}
