"""Keeps one worker running: starts it, notices its death or its silence, starts it again, gives up when told to."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

from msgspec.structs import replace

from slipstream.cluster.config import Report, RestartPolicy, WorkerConfig
from slipstream.cluster.launch import Launched, Launcher
from slipstream.cluster.messages import (
    AnyOutputs,
    AnyReady,
    Fatal,
    FromWorker,
    ImageOutputs,
    ImagesReady,
    Outputs,
    Progress,
    Ready,
    Shutdown,
    ToWorker,
)
from slipstream.cluster.post import Post
from slipstream.cluster.process import FATAL_EXIT
from slipstream.errors import AT_START, SlipstreamError, WorkerError

logger = logging.getLogger(__name__)

_FATAL_GRACE = 1.0
_HANG_TICKS = 8


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a supervisor tells its owner, all called in the event loop.

    `progress(stage, done, total)` while a worker starts; `accept(ready)` when it says what it is, which may raise a
    SlipstreamError, as if it could not start; `up(ready)` when it takes requests; `outputs` for each message of it;
    `down(reason)` when it died; `waits(reason, seconds)` before it is started again; `lost(reason)` when no other will
    be. `busy()` answers whether the worker has requests, and so should be heard.
    """

    progress: Report
    accept: Callable[[AnyReady], None]
    up: Callable[[AnyReady], None]
    outputs: Callable[[AnyOutputs], None]
    down: Callable[[str], None]
    waits: Callable[[str, float], None]
    lost: Callable[[str], None]
    busy: Callable[[], bool]


class Supervisor:
    """One worker slot. `incarnation` counts the processes that it had, `restarts` those that replaced a dead one."""

    def __init__(
        self, post: Post, config: WorkerConfig, policy: RestartPolicy, hooks: Hooks, launcher: Launcher
    ) -> None:
        """`launcher` starts the processes."""
        self._post = post
        self._config = config
        self._policy = policy
        self._hooks = hooks
        self._launcher = launcher
        self._secret = secrets.token_hex(16)
        self._process: Launched | None = None
        self._ready: asyncio.Future[AnyReady] = asyncio.get_running_loop().create_future()
        self._fatal: asyncio.Future[Fatal] = asyncio.get_running_loop().create_future()
        self._heard = 0
        self._keeping: asyncio.Task[None] | None = None
        self.incarnation = 0
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The process id of the newest worker, None before the first; of a group's, the leader's."""
        return self._process.pid if self._process else None

    @property
    def pids(self) -> list[int]:
        """The process ids of all members of the newest worker, the leader's first; none before the first."""
        return list(self._process.pids) if self._process else []

    async def start(self) -> None:
        """Start the first worker and wait until it is ready; from then on it is kept running.

        Nothing is tried twice here: what stops the first start (no such model, too little memory) stops the second.
        Raises the worker's own error, or WorkerError if it died without one.
        """
        ready = await self._launch()
        self._hooks.up(ready)
        self._keep_up()

    async def replace(self, config: WorkerConfig) -> None:
        """End the worker, as `stop` does, and start one with another configuration in its place.

        Where that one cannot start, one with the old configuration is started again, and what went wrong is raised.
        """
        await self.stop()
        old, self._config = self._config, config
        try:
            ready = await self._launch()
        except SlipstreamError as error:
            self._config = old
            self._keep_up(dead=str(error))
            raise
        self._hooks.up(ready)
        self._keep_up()

    def send(self, message: ToWorker) -> None:
        """Send to the newest worker."""
        self._post.send(self._identity, message)

    async def stop(self) -> None:
        """End the worker: ask, wait `shutdown_timeout`, kill. Returns when the process is gone. May be called twice."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        process = self._process
        if process is None:
            return
        if not process.exited.done() and self._ready.done() and not self._ready.cancelled():
            self.send(Shutdown())
            await asyncio.wait({process.exited}, timeout=self._policy.shutdown_timeout)
        # A worker that is still starting does not read the socket, and has nothing to lose.
        process.kill()
        await asyncio.wait({process.exited})
        self._post.forget(self._identity)

    @property
    def _identity(self) -> bytes:
        return f"{self._secret}.{self.incarnation}".encode()

    def _keep_up(self, dead: str | None = None) -> None:
        """Keep a worker running from now on; `dead`: why there is none right now."""
        self._keeping = asyncio.get_running_loop().create_task(self._keep(dead), name="slipstream-supervisor")

    async def _launch(self) -> AnyReady:
        """Start a process and wait for its Ready. Raises the worker's error, or WorkerError, if it dies before."""
        loop = asyncio.get_running_loop()
        self._post.forget(self._identity)
        self.incarnation += 1
        self._ready, self._fatal = loop.create_future(), loop.create_future()
        self._post.register(self._identity, self._deliver)
        config = replace(
            self._config,
            endpoint=self._post.endpoint,
            identity=self._identity.decode(),
            incarnation=self.incarnation,
        )
        self._process = process = await self._launcher.launch(config)
        try:
            first: set[asyncio.Future[Any]] = {self._ready, process.exited}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._ready.cancel()
            process.kill()
            raise
        if self._ready.done():
            try:
                self._hooks.accept(self._ready.result())
            except SlipstreamError:
                process.kill()
                await asyncio.wait({process.exited})
                self._post.forget(self._identity)
                raise
            return self._ready.result()
        self._ready.cancel()
        died = await self._error_of(process)
        self._post.forget(self._identity)
        raise died

    async def _keep(self, dead: str | None) -> None:
        try:
            await self._restart_for_ever(dead)
        except Exception as error:
            # A mistake of ours must not leave requests waiting for a worker that nobody starts.
            logger.exception("the supervisor failed")
            self._hooks.lost(f"the supervisor failed: {error}")

    async def _restart_for_ever(self, dead: str | None) -> None:
        strikes = 0
        while True:
            since = monotonic()
            reason = await self._death() if dead is None else dead
            dead = None
            self._post.forget(self._identity)
            self._hooks.down(reason)
            strikes = 0 if monotonic() - since >= self._policy.settle_seconds else strikes
            while True:
                strikes += 1
                if strikes > self._policy.max_restarts:
                    logger.error("the worker is not restarted again, after %d times: %s", strikes - 1, reason)
                    self._hooks.lost(reason)
                    return
                delay = self._policy.delay(strikes)
                logger.error("%s; restarting it in %g s", reason, delay)
                self._hooks.waits(reason, delay)
                await asyncio.sleep(delay)
                self.restarts += 1
                try:
                    ready = await self._launch()
                except SlipstreamError as error:
                    reason = str(error)
                else:
                    break
            self._hooks.up(ready)

    async def _death(self) -> str:
        """Wait until the worker is dead, killing it if it hangs. Returns why it died."""
        process = self._process
        assert process is not None
        silence = asyncio.get_running_loop().create_task(self._silence())
        try:
            first: set[asyncio.Future[Any]] = {silence, process.exited}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        finally:
            silence.cancel()
        if process.exited.done():
            return str(await self._error_of(process))
        process.kill()
        await asyncio.wait({process.exited})
        return f"the worker was killed: it had work and gave no sign of life for {self._policy.hang_timeout:g} s"

    async def _silence(self) -> None:
        """Return when a worker with requests was not heard for `hang_timeout`.

        Counts short waits rather than comparing clocks: if this process was the one that stood still (stopped, or busy
        elsewhere), one wait passes, the messages that piled up are read, and the worker is not blamed.
        """
        ticks, heard = 0, self._heard
        while ticks < _HANG_TICKS:
            await asyncio.sleep(self._policy.hang_timeout / _HANG_TICKS)
            silent = self._hooks.busy() and self._heard == heard
            ticks = ticks + 1 if silent else 0
            heard = self._heard

    async def _error_of(self, process: Launched) -> SlipstreamError:
        """Why a process that has exited did so: its Fatal, or its exit code and last words."""
        if process.exited.result() == FATAL_EXIT:
            # It was sent before the exit, but comes another way: the exit may be seen first.
            await asyncio.wait({self._fatal}, timeout=_FATAL_GRACE)
        if self._fatal.done():
            fatal = self._fatal.result()
            if fatal.kind in AT_START:
                return AT_START[fatal.kind](fatal.error)
            return WorkerError(f"the worker failed with {fatal.kind}: {fatal.error}")
        # SIGKILL lets nobody say anything: the last lines are about something else.
        lines = "" if process.exited.result() == -signal.SIGKILL else process.last_lines
        return WorkerError(f"the worker {process.describe_exit()}" + (f"; its last lines:\n{lines}" if lines else ""))

    def _deliver(self, message: FromWorker) -> None:
        if message.incarnation != self.incarnation:
            logger.info("dropped a message of incarnation %d, now is %d", message.incarnation, self.incarnation)
            return
        self._heard += 1
        match message:
            case Outputs() | ImageOutputs():
                self._hooks.outputs(message)
            case Progress(stage=stage, done=done, total=total):
                self._hooks.progress(stage, done, total)
            case Ready() | ImagesReady() if not self._ready.done():
                self._ready.set_result(message)
            case Fatal() if not self._fatal.done():
                self._fatal.set_result(message)
            case _:
                logger.warning("dropped a second %s of the worker", type(message).__name__)
