"""A worker of two processes with two devices each, in real processes that are killed: gloo joins their CPUs."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import pytest

from slipstream.api.engine import EngineRequest
from slipstream.checkpoint import RandomSource, save_checkpoint
from slipstream.cluster.cargo import TOKENS
from slipstream.cluster.config import GroupConfig, RestartPolicy, WorkerSpec
from slipstream.cluster.worker_client import WorkerClient
from slipstream.engine.config import EngineConfig
from slipstream.errors import ConfigError
from slipstream.models.registry import family
from tests.cluster.conftest import alive, outputs_of, tokens_of, until
from tests.cluster.test_real_engine import LLAMA, request_of

STREAMS, TOKENS_EACH = 8, 200
RESTORED = 20.0
"""Seconds after which a killed group must take requests again."""


def devices(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setenv("XLA_FLAGS", f"--xla_force_host_platform_device_count={count}")


def saved(folder: Path) -> Path:
    chosen = family(LLAMA)
    save_checkpoint(RandomSource(chosen.plan(chosen.from_hf(LLAMA)), 1), folder / "model", LLAMA)
    return folder / "model"


def engine_of(folder: Path, **changes: object) -> EngineConfig:
    limits = {"max_seqs": 8, "max_batched_tokens": 32, "max_model_len": 256, "kv_bytes": 2**20} | changes
    return EngineConfig(tp=4, compile_cache=str(folder / "compiled"), **limits)  # type: ignore[arg-type]


def spec(config: EngineConfig) -> WorkerSpec:
    return WorkerSpec(engine=config, group=GroupConfig(size=2))


@asynccontextmanager
async def running(
    model: Path, engine: EngineConfig | list[WorkerSpec], hang_timeout: float = 60.0
) -> AsyncIterator[WorkerClient]:
    policy = RestartPolicy(delays=(0.0,), hang_timeout=hang_timeout, suspect_after=9, max_fruitless=9)
    client = WorkerClient(TOKENS, model, engine, policy=policy)
    await client.start()
    try:
        yield client
    finally:
        pids = client.member_pids
        await client.close()
        assert not any(map(alive, pids))


async def expected_of(model: Path, config: EngineConfig, requests: list[EngineRequest]) -> list[list[int]]:
    """What one process on as many devices makes of them."""
    async with running(model, config) as client:
        return [tokens_of(one) for one in await asyncio.gather(*(outputs_of(client, each) for each in requests))]


class Streams:
    """Requests that are being read."""

    def __init__(self, client: WorkerClient, requests: list[EngineRequest]) -> None:
        self.client, self.got = client, [list[int]() for _ in requests]
        self._readers = [asyncio.create_task(self._read(*each)) for each in zip(requests, self.got, strict=True)]

    async def _read(self, request: EngineRequest, tokens: list[int]) -> None:
        async for output in self.client.generate(request):
            tokens += output.token_ids

    def have(self, count: int) -> Callable[[], bool]:
        """Whether so many tokens have come, of all streams."""
        return lambda: sum(map(len, self.got)) >= count

    async def finished(self) -> list[list[int]]:
        await asyncio.gather(*self._readers)
        return self.got


async def hit(client: WorkerClient, rank: int, how: signal.Signals = signal.SIGKILL, *, worker: int = 0) -> float:
    """Signal a member of a group; seconds until all of it were replaced and it takes requests again."""
    members = slice(2 * worker, 2 * worker + 2)
    before, since = client.member_pids[members], monotonic()
    os.kill(before[rank], how)
    await until(lambda: client.workers[worker].state != "ready", 30)
    await until(lambda: client.workers[worker].state == "ready", 60)
    assert len(client.member_pids[members]) == 2 and not set(client.member_pids) & set(before)
    assert not any(map(alive, before))
    return monotonic() - since


@pytest.mark.long
async def test_a_group_makes_the_tokens_of_one_process_whoever_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model, config = saved(tmp_path), engine_of(tmp_path)
    requests = [request_of(n, TOKENS_EACH) for n in range(STREAMS)]
    devices(monkeypatch, 4)
    expected = await expected_of(model, config, requests)
    devices(monkeypatch, 2)
    async with running(model, [spec(config)]) as client:
        assert (client.info.num_devices, client.info.vocab_size) == (4, 97)
        streams, rng = Streams(client, requests), random.Random(6)
        taken = []
        for least, rank in ((100, 1), (600, 0)):
            await until(streams.have(least + rng.randrange(300)), 60)
            taken.append(await hit(client, rank))
        assert await streams.finished() == expected
        assert client.restarts == 2 and client.replayed >= STREAMS
        assert client.stats.compiles_after_ready == 0
        print("restored after", [f"{seconds:.1f} s" for seconds in taken])
        assert max(taken) < RESTORED
    said = capfd.readouterr().err
    read = [int(count) for count in re.findall(r"member \d of 2 read (\d+) bytes of weights", said)]
    assert len(read) == 6
    stored = (model / "model.safetensors").stat().st_size
    assert all(0.45 * stored < count < 0.6 * stored for count in read), (read, stored)


@pytest.mark.long
async def test_two_groups_and_a_member_that_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = saved(tmp_path), engine_of(tmp_path)
    requests = [request_of(n, TOKENS_EACH) for n in range(STREAMS)]
    devices(monkeypatch, 4)
    expected = await expected_of(model, config, requests)
    devices(monkeypatch, 2)
    async with running(model, [spec(config), spec(config)], hang_timeout=4.0) as client:
        assert len(client.member_pids) == 4
        streams = Streams(client, requests)
        await until(streams.have(200), 60)
        assert all(worker.requests for worker in client.workers)
        stopped, killed = await asyncio.gather(hit(client, 1, signal.SIGSTOP), hit(client, 0, worker=1))
        print(f"restored after {stopped:.1f} s and {killed:.1f} s")
        assert await streams.finished() == expected
        assert [worker.restarts for worker in client.workers] == [1, 1]


async def test_what_a_member_cannot_do_is_said_by_the_leader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices(monkeypatch, 1)
    client = WorkerClient(TOKENS, saved(tmp_path), [spec(engine_of(tmp_path))])
    with pytest.raises(ConfigError, match="needs 2 devices of each, process 0 has 1"):
        await client.start()
