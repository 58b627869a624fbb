"""A supervisor whose start is cancelled while it waits for the end of a worker that it has killed."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import MagicMock

import pytest

from slipstream.cluster.config import RestartPolicy, WorkerConfig
from slipstream.cluster.supervisor import Supervisor
from slipstream.errors import ConfigError


def refuse(_: Any) -> None:
    raise ConfigError("a worker like this does not fit the others")


async def test_who_is_cancelled_does_not_end_the_wait_of_others() -> None:
    """Two workers that do not match: both are refused, and the one whose error comes first cancels the other's start.

    What tells that a process is gone must not be cancelled with it: `stop` waits for the same.
    """
    process = MagicMock(exited=asyncio.get_running_loop().create_future())
    launcher = MagicMock()
    launcher.launch.side_effect = lambda _: asyncio.sleep(0, process)
    post = MagicMock(endpoint="ipc://nowhere")
    config = WorkerConfig(model="", endpoint="", identity="", incarnation=0, parent_pid=0)
    supervisor = Supervisor(post, config, RestartPolicy(), MagicMock(accept=refuse), launcher)
    starting = asyncio.create_task(supervisor.start())
    while not launcher.launch.called:
        await asyncio.sleep(0)
    supervisor._ready.set_result(MagicMock())
    while not process.kill.called:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    stopping = asyncio.create_task(supervisor.stop())
    await asyncio.sleep(0)
    assert not stopping.done()
    process.exited.set_result(-9)
    await stopping
