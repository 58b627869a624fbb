"""A worker that is started before its model is known."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slipstream.cluster.config import ENGINE_MODULES
from slipstream.cluster.process import EarlyWorker
from slipstream.errors import WorkerError
from tests.cluster.conftest import Start, outputs_of, request_of, tokens_of


async def test_it_becomes_the_first_worker(start: Start) -> None:
    with EarlyWorker(["json.tool"]) as early:
        [pid] = _children()
        client = await start(early=early)
        assert client.worker_pids == [pid]
    # Leaving the context ends only what nobody took.
    assert len(tokens_of(await outputs_of(client, request_of(1)))) == 8


async def test_its_successor_is_started_anew(start: Start) -> None:
    with EarlyWorker() as early:
        client = await start(early=early)
        [first] = client.worker_pids
        os.kill(first, 9)
        assert len(tokens_of(await outputs_of(client, request_of(1)))) == 8
        assert client.worker_pids != [first]


async def test_one_that_died_early_is_an_error(start: Start) -> None:
    with (
        EarlyWorker(["no.such.module"]) as early,
        pytest.raises(WorkerError, match=r"no\.such\.module|No module named"),
    ):
        await start(early=early)


def test_one_that_nobody_takes_is_killed() -> None:
    with pytest.raises(KeyError), EarlyWorker():
        [pid] = _children()
        raise KeyError
    assert not Path(f"/proc/{pid}").exists()


def test_the_modules_to_load_early_are_there() -> None:
    code = "import sys, importlib; [importlib.import_module(m) for m in sys.argv[1:]]; assert 'jax' in sys.modules"
    subprocess.run([sys.executable, "-c", code, *ENGINE_MODULES], check=True)


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
