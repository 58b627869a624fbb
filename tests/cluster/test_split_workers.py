"""Prefill and decode apart, whole: a client, real worker processes with a small random model, and their KV pages."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from slipstream.api.engine import EngineRequest
from slipstream.api.sampling import TokenSampling
from slipstream.checkpoint import RandomSource, open_checkpoint, save_checkpoint
from slipstream.cluster.cargo import TOKENS
from slipstream.cluster.config import WorkerSpec
from slipstream.cluster.transfer.address import connect
from slipstream.cluster.worker_client import WorkerClient
from slipstream.engine.build import build
from slipstream.engine.config import EngineConfig
from slipstream.models.registry import family
from slipstream.server.metrics import Metrics
from tests.cluster.conftest import EAGER, outputs_of, tokens_of, until
from tests.cluster.test_real_engine import LLAMA
from tests.engine import tiny

PAGE = 4


def requests_of(count: int, salt: int = 0) -> list[EngineRequest]:
    """Prompts of 5 to 120 tokens, every third with the beginning of the one before; greedy and seeded."""
    out: list[EngineRequest] = []
    for n in range(count):
        prompt = [(salt + n * 13 + i * 7) % 97 for i in range(5 + n * 37 % 116)]
        if n % 3 == 2:
            prompt = out[-1].prompt_token_ids[:30] + prompt[:40]
        sampling = TokenSampling(seed=n, max_tokens=1 + n * 5 % 23, temperature=float(n % 2), top_k=20 * (n % 5 == 0))
        out.append(EngineRequest(id=f"r{salt}.{n}", prompt_token_ids=prompt, sampling=sampling))
    return out


def engine_of(folder: Path, **settings: Any) -> EngineConfig:
    defaults = {"max_seqs": 8, "max_batched_tokens": 32, "max_model_len": 256, "page_size": PAGE, "kv_bytes": 2**19}
    return EngineConfig(**{**defaults, "compile_cache": str(folder / "compiled"), "cpu_threads": 1, **settings})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, chosen = tmp_path_factory.mktemp("split"), family(LLAMA)
    save_checkpoint(RandomSource(chosen.plan(chosen.from_hf(LLAMA)), 1), folder / "model", LLAMA)
    return folder


@asynccontextmanager
async def apart(model: Path, prefill: dict[str, Any], decode: dict[str, Any]) -> AsyncIterator[WorkerClient]:
    """A prefill worker and a decode worker behind a client: worker 0 and worker 1."""
    specs = [
        WorkerSpec(engine=engine_of(model, **prefill), role="prefill"),
        WorkerSpec(engine=engine_of(model, **decode), role="decode"),
    ]
    client = WorkerClient(TOKENS, model / "model", specs, policy=EAGER, threshold=PAGE, log_level="warning")
    try:
        await client.start()
        yield client
    finally:
        await client.close()


def alone(model: Path, requests: Sequence[EngineRequest]) -> dict[str, list[int]]:
    """The tokens of one engine in this process, which finds no prefix."""
    engine = build(open_checkpoint(model / "model"), engine_of(model, prefix_caching=False, compile_cache=""))
    return {name: tiny.tokens(outputs) for name, outputs in tiny.run(engine, requests).items()}


async def tokens_by(client: WorkerClient, requests: Sequence[EngineRequest]) -> dict[str, list[int]]:
    outputs = await asyncio.gather(*(outputs_of(client, request) for request in requests))
    return {request.id: tokens_of(one) for request, one in zip(requests, outputs, strict=True)}


async def idle(client: WorkerClient) -> None:
    """Wait until nothing is held anywhere."""
    await until(lambda: all(slot.stats.pages_used == 0 and not slot.tickets for slot in client._slots), 30)


async def check(client: WorkerClient, requests: Sequence[EngineRequest]) -> dict[str, list[int]]:
    """The tokens, in waves so that some prompts find the beginning of others. All pages move, and are counted."""
    tokens: dict[str, list[int]] = {}
    for first in range(0, len(requests), 8):
        tokens |= await tokens_by(client, requests[first : first + 8])
    await idle(client)
    p, d = (slot.stats for slot in client._slots)
    assert p.transfer.offers >= d.transfer.fetches > len(requests) // 2
    assert 0 < d.transfer.pages_received <= p.transfer.pages_sent
    assert d.transfer.bytes_received > d.transfer.pages_received * PAGE * 2 * 2 * 2 * 8  # a layer's keys and values
    assert d.transfer.seconds > 0
    assert d.generation_tokens > p.generation_tokens and d.prefix_hits > p.prefix_hits
    assert p.compiles_after_ready == d.compiles_after_ready == 0
    ended = sum(request.sampling.max_tokens == 1 for request in requests)  # by P's token: nobody waits for its pages
    failures = client.stats.transfer.failures
    assert failures.keys() <= {"unknown"} and sum(failures.values()) <= ended
    return tokens


async def test_two_workers_give_the_tokens_of_one_process_and_a_kill_changes_nothing(model: Path) -> None:
    """Unequal steps and an unequal cache layout; then kill -9 of the prefill worker, and again with its successor."""
    first, second, third = requests_of(24), requests_of(8, salt=31), requests_of(8, salt=62)
    expected = alone(model, [*first, *second, *third])
    async with apart(model, {"max_batched_tokens": 16}, {"kernels": "reference"}) as client:
        tokens = await check(client, first)

        transfer = client._slots[0].transfer
        assert transfer is not None
        with closing(connect(transfer.endpoint, 5)) as stranger:
            stranger.sendall(bytes(200))
            with suppress(ConnectionResetError):
                stranger.recv(1)
        await until(lambda: client.stats.transfer.failures.get("forged") == 1)

        running = [asyncio.create_task(outputs_of(client, request)) for request in second]
        await until(lambda: any(flight.stream.advanced for flight in client._flights.values()))
        os.kill(client.worker_pids[0], signal.SIGKILL)
        for request, outputs in zip(second, await asyncio.gather(*running), strict=True):
            tokens[request.id] = tokens_of(outputs)

        await until(lambda: client.restarts == 1 and client.workers[0].state == "ready")
        before = client._slots[1].stats.transfer
        tokens |= await tokens_by(client, third)
        assert tokens == expected
        await idle(client)
        assert client._slots[1].stats.transfer.pages_received > before.pages_received  # of another endpoint

        metrics = Metrics()
        metrics.describe(client.info, "m")
        metrics.follow(client.stats, ready=True, restarts=client.restarts)
        text = metrics.text().decode()
        assert 'slipstream:kv_transfer_failures_total{engine="0",model_name="m",reason="forged"} 1.0' in text
        moved = f"{float(client.stats.transfer.bytes_received)}"
        assert f'slipstream:kv_transfer_bytes_received_total{{engine="0",model_name="m"}} {moved}' in text


@pytest.mark.long
async def test_unequal_tensor_parallel_degrees(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P on one device, D on two."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    requests = requests_of(12)
    same = {"kernels": "reference", "max_seqs": 4}
    async with apart(model, same, {**same, "tp": 2}) as client:
        assert await check(client, requests) == alone(model, requests)
