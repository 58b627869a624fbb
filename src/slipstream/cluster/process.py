"""One worker process: started, listened to, killed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from asyncio.subprocess import PIPE, Process

import msgspec

from slipstream.cluster.config import WorkerConfig

FATAL_EXIT = 70
"""Exit code of a worker that sent Fatal before it exited (EX_SOFTWARE of sysexits.h)."""

_TAIL_BYTES = 4096
_TAIL_LINES = 12
_PUMP_GRACE = 0.5


class WorkerProcess:
    """A running `python -m slipstream.cluster.worker`. `exited` is done, with the exit code, when it has died.

    Its standard error goes on to ours; the last lines are kept for error messages. It runs in a session of its own, so
    a Ctrl-C in the terminal reaches the parent alone. It dies with the thread that spawns it: spawn from one that
    lives as long as the process.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._tail = b""
        loop = asyncio.get_running_loop()
        self._pump = loop.create_task(self._forward_stderr(), name="slipstream-worker-stderr")
        self.exited: asyncio.Task[int] = loop.create_task(self._wait(), name="slipstream-worker-exit")

    @classmethod
    async def spawn(cls, config: WorkerConfig) -> WorkerProcess:
        """Start a worker with this configuration. Raises OSError where no process can be started."""
        process = await asyncio.create_subprocess_exec(
            # -P: the folder we were started in is not a place to import from.
            *(sys.executable, "-P", "-m", "slipstream.cluster.worker"),
            stdin=PIPE,
            stderr=PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None
        # Stays open: the worker takes its end for the parent's death.
        process.stdin.write(msgspec.json.encode(config) + b"\n")
        return cls(process)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def last_lines(self) -> str:
        """The end of what it wrote to standard error."""
        return "\n".join(self._tail.decode(errors="replace").splitlines()[-_TAIL_LINES:])

    def kill(self) -> None:
        """Kill it with SIGKILL, if it still runs. `exited` tells when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def describe_exit(self) -> str:
        """How it died, for a person: "was killed by SIGKILL", "exited with code 1"."""
        code = self._process.returncode
        if code is None:
            return "is still running"
        if code >= 0:
            return f"exited with code {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"

    async def _wait(self) -> int:
        code = await self._process.wait()
        await asyncio.wait({self._pump}, timeout=_PUMP_GRACE)
        self._pump.cancel()
        assert self._process.stdin is not None
        self._process.stdin.close()
        return code

    async def _forward_stderr(self) -> None:
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(1 << 16):
            self._tail = (self._tail + chunk)[-_TAIL_BYTES:]
            sys.stderr.write(chunk.decode(errors="replace"))
            sys.stderr.flush()
