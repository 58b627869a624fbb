"""One worker process: started, listened to, killed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import TracebackType

import msgspec

from slipstream.cluster.config import WorkerConfig

FATAL_EXIT = 70
"""Exit code of a worker that sent Fatal before it exited (EX_SOFTWARE of sysexits.h)."""
LOST_EXIT = 71
"""Exit code of a member of a group that lost another one, or failed for a reason that may pass (EX_OSERR)."""

_TAIL_BYTES = 4096
_TAIL_LINES = 12
_PUMP_GRACE = 0.5


class EarlyWorker:
    """A worker process that waits for its configuration, and loads `modules` until it comes.

    Loading JAX takes a good part of a start, and needs nothing of what the parent finds out meanwhile: which model it
    is, where it lies, what its tokenizer is. A context manager: a process that nobody took is killed at the end.
    """

    def __init__(self, modules: Sequence[str] = ()) -> None:
        """Start it. Raises OSError where no process can be started."""
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            # -P: the folder we were started in is not a place to import from.
            [sys.executable, "-P", "-m", "slipstream.cluster.worker", *modules],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )

    def take(self) -> subprocess.Popen[bytes] | None:
        """The process, whose end is the taker's business from now on; None if it was taken before."""
        process, self._process = self._process, None
        return process

    def __enter__(self) -> EarlyWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self.take()
        if process is not None:
            process.kill()
            process.communicate()


class WorkerProcess:
    """A running `python -m slipstream.cluster.worker`. `exited` is done, with the exit code, when it has died.

    Its standard error goes on to ours; the last lines are kept for error messages. It runs in a session of its own, so
    a Ctrl-C in the terminal reaches the parent alone. It dies with the thread that spawns it: spawn from one that
    lives as long as the process.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], errors: asyncio.StreamReader, pipe: asyncio.ReadTransport
    ) -> None:
        self._process = process
        self._errors = errors
        self._pipe = pipe
        self._tail = b""
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = loop.create_future()
        # A thread for the few workers that there are: every system can wait in one, whatever the loop is.
        threading.Thread(target=self._watch, args=(loop,), name="slipstream-worker-watch", daemon=True).start()
        self._pump = loop.create_task(self._forward_stderr(), name="slipstream-worker-stderr")
        self.exited: asyncio.Task[int] = loop.create_task(self._wait(), name="slipstream-worker-exit")

    @classmethod
    async def spawn(cls, config: WorkerConfig, early: EarlyWorker | None = None) -> WorkerProcess:
        """Start a worker with this configuration, or give it to one that was started early.

        Raises OSError where no process can be started.
        """
        process = (early and early.take()) or EarlyWorker().take()
        assert process is not None and process.stdin is not None and process.stderr is not None
        errors = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(errors), process.stderr)
        # It stays open: the worker takes its end for the parent's death. One that has died already shows in `exited`.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(msgspec.json.encode(config) + b"\n")
        return cls(process, errors, pipe)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def pids(self) -> list[int]:
        """The same, as of a group of one."""
        return [self._process.pid]

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

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        code = self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self._ended.set_result, code)

    async def _wait(self) -> int:
        code = await self._ended
        await asyncio.wait({self._pump}, timeout=_PUMP_GRACE)
        self._pump.cancel()
        # uvloop leaves it open at the end of the stream.
        self._pipe.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        return code

    async def _forward_stderr(self) -> None:
        while chunk := await self._errors.read(1 << 16):
            self._tail = (self._tail + chunk)[-_TAIL_BYTES:]
            sys.stderr.write(chunk.decode(errors="replace"))
            sys.stderr.flush()
