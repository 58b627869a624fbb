"""A machine's part of a group whose leader is elsewhere: its member runs, and is started again when its group ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from time import monotonic

from slipstream.cluster.config import RestartPolicy, WorkerConfig
from slipstream.cluster.process import FATAL_EXIT, EarlyWorker, WorkerProcess
from slipstream.errors import WorkerError

logger = logging.getLogger(__name__)


def keep_following(config: WorkerConfig, policy: RestartPolicy, early: EarlyWorker | None = None) -> None:
    """Run the member until SIGTERM or SIGINT. A group that ends, however, is followed by the next one of its leader.

    `early`: a process that was started before and becomes the first member. Raises WorkerError for a member that the
    leader refuses, or that cannot start.
    """
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_keep(config, policy, early))


async def _keep(config: WorkerConfig, policy: RestartPolicy, early: EarlyWorker | None) -> None:
    keeping = asyncio.current_task()
    assert keeping is not None
    for interrupt in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(interrupt, keeping.cancel)
    strikes = 0
    while True:
        since = monotonic()
        process = await WorkerProcess.spawn(config, early)
        early = None
        try:
            # Shielded: a cancelled wait would cancel the task that tells whether the process is gone.
            code = await asyncio.shield(process.exited)
        except asyncio.CancelledError:
            process.kill()
            await asyncio.wait({process.exited})
            raise
        if code == FATAL_EXIT:
            raise WorkerError(f"this member of the group cannot run; its last lines:\n{process.last_lines}")
        strikes = 0 if code == 0 or monotonic() - since >= policy.settle_seconds else strikes + 1
        delay = policy.delay(strikes) if strikes else 0.0
        logger.warning("the member %s; the next one waits for the leader in %g s", process.describe_exit(), delay)
        await asyncio.sleep(delay)
