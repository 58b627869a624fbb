"""Workers that die, in real processes: what readers of streams see of it (nothing but a pause)."""

from __future__ import annotations

import asyncio
import os
import random
import signal

import pytest

from slipstream.api.engine import TokenOutput
from slipstream.cluster.config import RestartPolicy
from slipstream.errors import RequestFailed
from tests.cluster.conftest import EAGER, Start, outputs_of, request_of, tokens_of, until
from tests.cluster.fake_engine import POISON, RAISES, FakeOptions, expected


@pytest.mark.parametrize("seed", [1, 2])
async def test_kill_in_the_middle_of_32_streams_several_times(start: Start, seed: int) -> None:
    client = await start(FakeOptions(step_seconds=0.004, start_seconds=0.05))
    requests = [request_of(n, max_tokens=150 + 5 * n, logprobs=0) for n in range(32)]
    tasks = [asyncio.create_task(outputs_of(client, request)) for request in requests]
    rng = random.Random(seed)
    pids = set()
    for _ in range(5):
        await asyncio.sleep(rng.uniform(0.02, 0.4))
        # Whichever process is the newest: serving, or still starting.
        pid = client.worker_pids[0]
        pids.add(pid)
        os.kill(pid, signal.SIGKILL)
        await until(lambda dead=pid: client.worker_pids[0] != dead)
    for request, outputs in zip(requests, await asyncio.gather(*tasks), strict=True):
        assert tokens_of(outputs) == expected(request)
        logprobs = [entry for output in outputs for entry in output.logprobs or []]
        assert [entry.token_id for entry in logprobs] == expected(request)
        assert [-entry.logprob for entry in logprobs] == [3 + i for i in range(request.sampling.max_tokens)]
        assert [output.finish_reason for output in outputs][-1] == "length"
        assert all(output.finish_reason is None and output.id == request.id for output in outputs[:-1])
    assert client.restarts == len(pids) == 5
    assert 32 <= client.replayed <= 5 * 32
    assert client.ready


async def test_first_output_facts_come_once(start: Start) -> None:
    client = await start(FakeOptions(step_seconds=0.005))
    request = request_of(1, max_tokens=120, prompt=(1, 2, 3), prompt_logprobs=0)
    outputs: list[TokenOutput] = []
    async for output in client.generate(request):
        outputs.append(output)
        if len(outputs) == 5:
            os.kill(client.worker_pids[0], signal.SIGKILL)
    assert client.restarts == 1
    assert tokens_of(outputs) == expected(request)
    assert [len(o.prompt_logprobs) for o in outputs if o.prompt_logprobs is not None] == [4]
    assert [o.cached_tokens for o in outputs if o.cached_tokens is not None] == [1]  # the first incarnation's


async def test_counters_go_on_over_a_restart(start: Start) -> None:
    reports = []
    client = await start(on_stats=reports.append)
    await outputs_of(client, request_of(1, max_tokens=10))
    await until(lambda: client.stats.generation_tokens == 10 and client.stats.running == 0)
    os.kill(client.worker_pids[0], signal.SIGKILL)
    await until(lambda: not client.ready)
    await until(lambda: client.ready)
    await outputs_of(client, request_of(2, max_tokens=5))
    await until(lambda: client.stats.generation_tokens == 15)
    assert [r.generation_tokens for r in reports] == sorted(r.generation_tokens for r in reports)


async def test_requests_made_while_the_worker_is_down_wait_for_it(start: Start) -> None:
    client = await start(FakeOptions(start_seconds=0.2))
    os.kill(client.worker_pids[0], signal.SIGKILL)
    await until(lambda: not client.ready)
    request = request_of(3)
    assert tokens_of(await outputs_of(client, request)) == expected(request)
    assert client.replayed == 0


async def test_a_hung_worker_is_killed_and_replaced(start: Start) -> None:
    policy = RestartPolicy(delays=(0.0,), hang_timeout=0.4)
    client = await start(FakeOptions(step_seconds=0.005), policy)
    requests = [request_of(n, max_tokens=100) for n in range(4)]
    tasks = [asyncio.create_task(outputs_of(client, request)) for request in requests]
    await until(lambda: client.stats.steps > 3)
    pid = client.worker_pids[0]
    os.kill(pid, signal.SIGSTOP)
    for request, outputs in zip(requests, await asyncio.gather(*tasks), strict=True):
        assert tokens_of(outputs) == expected(request)
    assert client.restarts == 1 and client.worker_pids[0] != pid


async def test_an_idle_worker_is_not_taken_for_hung(start: Start) -> None:
    client = await start(policy=RestartPolicy(delays=(0.0,), hang_timeout=0.1))
    await asyncio.sleep(0.5)
    request = request_of(1)
    assert tokens_of(await outputs_of(client, request)) == expected(request)
    assert client.restarts == 0


async def test_a_crash_loop_gives_up_with_the_reason(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = RestartPolicy(delays=(0.0, 0.05, 0.1), max_restarts=3, suspect_after=9, max_fruitless=9)
    waits: list[int] = []
    delay = RestartPolicy.delay
    monkeypatch.setattr(RestartPolicy, "delay", lambda self, n: waits.append(n) or delay(self, n))
    client = await start(FakeOptions(exit_in_step=3), policy)
    with pytest.raises(RequestFailed, match=r"died more often.*3 times.*exited with code 3"):
        await outputs_of(client, request_of(1))
    assert waits == [1, 2, 3] and client.restarts == 3
    assert not client.ready and "exited with code 3" in str(client.failure)
    with pytest.raises(RequestFailed, match="exited with code 3"):
        await outputs_of(client, request_of(2))


def test_delays_grow_to_a_limit() -> None:
    assert [RestartPolicy().delay(n) for n in range(1, 11)] == [0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30]


async def test_restarts_that_fail_before_ready_are_counted_too(start: Start) -> None:
    policy = RestartPolicy(delays=(0.0,), max_restarts=2)
    client = await start(FakeOptions(error_at_start="OutOfMemory", exit_at_start_from=2), policy)
    task = asyncio.create_task(outputs_of(client, request_of(1, max_tokens=100_000)))
    await until(lambda: client.stats.steps > 0)
    os.kill(client.worker_pids[0], signal.SIGKILL)
    with pytest.raises(RequestFailed, match="what a person should read"):
        await task


async def test_a_request_that_kills_workers_fails_alone(start: Start) -> None:
    policy = RestartPolicy(delays=(0.0,), max_restarts=10, max_fruitless=2)
    client = await start(FakeOptions(step_seconds=0.002), policy)
    good = request_of(1, max_tokens=300)
    task = asyncio.create_task(outputs_of(client, good))
    await until(lambda: client.stats.steps > 0)
    with pytest.raises(RequestFailed, match=r"died 2 times in a row with it.*SIGKILL"):
        await outputs_of(client, request_of(2, prompt=(POISON,)))
    assert tokens_of(await task) == expected(good)
    assert client.restarts == 2 and client.replayed == 3  # the poison once, the other one twice


async def test_of_many_suspects_only_the_guilty_one_fails(start: Start) -> None:
    policy = RestartPolicy(delays=(0.0,), max_restarts=4, suspect_after=1, max_fruitless=2)
    client = await start(FakeOptions(step_seconds=0.002), policy)
    requests = [request_of(n, max_tokens=30, prompt=(POISON,) if n == 5 else ()) for n in range(12)]
    answers = await asyncio.gather(*(outputs_of(client, r) for r in requests), return_exceptions=True)
    for request, answer in zip(requests, answers, strict=True):
        if POISON in request.prompt_token_ids:
            assert isinstance(answer, RequestFailed) and "2 times in a row" in str(answer)
        else:
            assert not isinstance(answer, BaseException) and tokens_of(answer) == expected(request)
    assert client.restarts == 2


async def test_an_exception_of_the_engine_restarts_it(start: Start) -> None:
    client = await start(policy=RestartPolicy(delays=(0.0,), max_fruitless=1))
    with pytest.raises(RequestFailed, match="RuntimeError: the device is on fire"):
        await outputs_of(client, request_of(1, prompt=(RAISES,)))
    request = request_of(2)
    assert tokens_of(await outputs_of(client, request)) == expected(request)
    assert client.restarts == 1


async def test_abort_while_the_worker_is_down_is_not_replayed(start: Start) -> None:
    client = await start(FakeOptions(step_seconds=0.005, start_seconds=0.2), EAGER)
    stream = client.generate(request_of(1, max_tokens=100_000))
    await anext(stream)
    os.kill(client.worker_pids[0], signal.SIGKILL)
    await until(lambda: not client.ready)
    await stream.aclose()
    await until(lambda: client.ready)
    request = request_of(2)
    assert tokens_of(await outputs_of(client, request)) == expected(request)
    await until(lambda: client.stats.running == 0)
    assert client.restarts == 1
