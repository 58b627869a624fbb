from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from slipstream.api.engine import EngineRequest, TokenOutput
from slipstream.api.sampling import TokenSampling
from slipstream.cluster.cargo import TOKENS
from slipstream.cluster.config import RestartPolicy, Role, WorkerSpec
from slipstream.cluster.worker_client import WorkerClient
from slipstream.engine.config import EngineConfig
from tests.cluster.fake_engine import FACTORY, FakeOptions

ROOT = Path(__file__).parents[2]
EAGER = RestartPolicy(delays=(0.0,), max_restarts=100, suspect_after=100, max_fruitless=100)

Start = Callable[..., Awaitable[WorkerClient]]


@pytest.fixture(autouse=True)
def workers_find_the_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """`await start(FakeOptions(...), policy=..., ...)` gives a running client, closed after the test.

    `roles`: a worker for each.
    """
    clients: list[WorkerClient] = []

    async def make(
        options: FakeOptions | None = None,
        policy: RestartPolicy = EAGER,
        roles: tuple[Role, ...] = ("both",),
        processors: tuple[int, ...] | None = None,
        factory: str = FACTORY,
        **kwargs: Any,
    ) -> WorkerClient:
        model = (options or FakeOptions()).model()
        specs = [WorkerSpec(engine=EngineConfig(), role=role, processors=processors) for role in roles]
        client = WorkerClient(TOKENS, model, specs, policy=policy, engine_factory=factory, **kwargs)
        clients.append(client)
        await client.start()
        return client

    yield make
    for client in clients:
        await client.close()


def request_of(number: int, *, max_tokens: int = 8, prompt: tuple[int, ...] = (), **sampling: Any) -> EngineRequest:
    return EngineRequest(
        id=f"r{number}",
        prompt_token_ids=[number, 7, *prompt],
        sampling=TokenSampling(seed=2**64 - 1 - number, max_tokens=max_tokens, **sampling),
    )


async def outputs_of(client: WorkerClient, request: EngineRequest) -> list[TokenOutput]:
    return [output async for output in client.generate(request)]


def tokens_of(outputs: list[TokenOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something that must come true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def kill(pid: int) -> None:
    """Kill a worker, if it has not been replaced yet: one that was killed before may still be missing."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        os.kill(pid, 0)
        status = Path(f"/proc/{pid}/stat")
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
