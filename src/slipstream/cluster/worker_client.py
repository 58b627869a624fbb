"""A client over worker processes: routes outputs to their requests, and replays requests when a worker dies."""

from __future__ import annotations

import itertools
import logging
import os
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, Generic

from msgspec.structs import replace

from slipstream.cluster.cargo import Cargo, InFlight, Info, Output, Request, Stats
from slipstream.cluster.config import Report, RestartPolicy, WorkerConfig
from slipstream.cluster.messages import Abort, AnyOutputs
from slipstream.cluster.post import Post
from slipstream.cluster.process import EarlyWorker
from slipstream.cluster.supervisor import AnyInfo, Hooks, Supervisor
from slipstream.diffusion.config import ImageEngineConfig
from slipstream.engine.config import EngineConfig
from slipstream.errors import RequestFailed, Unavailable
from slipstream.telemetry.logs import LogFormat

logger = logging.getLogger(__name__)


class WorkerClient(Generic[Request, Output, Info, Stats]):
    """Runs a model in a worker process and speaks to it; an `EngineClient`, or an `ImageClient`, as its cargo is.

    A worker's death is answered by starting another one and giving it every request in flight, with the tokens that it
    has so far. The same request continues with the same tokens wherever it runs (the random key of a token is its seed
    and position), so a reader sees a pause and nothing else. A picture begins anew, and is the same picture.

    Parameters
    ----------
    cargo
        Tokens or images: `cargo.TOKENS`, `cargo.IMAGES`.
    model
        The checkpoint's folder or file.
    engine
        The engine's settings, of the cargo's kind.
    policy
        When to restart the worker, when to give up, when it counts as hung.
    on_progress
        Called with (stage, done, total) while a worker starts, also when it is restarted.
    on_stats
        Called with each report of a worker, for histograms: `stats` shows only the newest one.
    log_format, log_level
        How the worker writes its log lines, and the least level of them. Its standard error goes to ours, so auto asks
        whether ours is a terminal.
    engine_factory
        What the worker builds, as "module:function", in place of the cargo's own; tests put a small engine here.
    early
        A worker process that was started before the model was known; it becomes the first one.
    """

    def __init__(
        self,
        cargo: Cargo[Request, Output, Info, Stats],
        model: str | Path,
        engine: EngineConfig | ImageEngineConfig,
        *,
        policy: RestartPolicy | None = None,
        on_progress: Report | None = None,
        on_stats: Callable[[Stats], None] | None = None,
        log_format: LogFormat = "auto",
        log_level: str = "info",
        engine_factory: str | None = None,
        early: EarlyWorker | None = None,
    ) -> None:
        self._config = WorkerConfig(
            model=str(model),
            engine=engine if isinstance(engine, EngineConfig) else None,
            images=engine if isinstance(engine, ImageEngineConfig) else None,
            endpoint="",
            identity="",
            incarnation=0,
            parent_pid=os.getpid(),
            log_format=log_format if log_format != "auto" else "text" if sys.stderr.isatty() else "json",
            log_level=log_level,
            engine_factory=engine_factory or cargo.factory,
        )
        self._cargo = cargo
        self._early = early
        self._policy = policy or RestartPolicy()
        self._on_progress = on_progress
        self._on_stats = on_stats
        self._streams: dict[str, InFlight[Request, Output]] = {}
        self._numbers = itertools.count()
        self._post: Post | None = None
        self._worker: Supervisor | None = None
        self._info: Info | None = None
        self._stats = cargo.idle
        self._retired = cargo.idle
        self._ready = False
        self._refusal: str | None = "the engine has not been started"
        self._on_trial: InFlight[Request, Output] | None = None
        self._replayed = 0

    @property
    def info(self) -> Info:
        """What the engine is. Raises Unavailable before `start` has returned."""
        if self._info is None:
            raise Unavailable("the engine is not ready yet")
        return self._info

    @property
    def stats(self) -> Stats:
        """The newest statistics. Counters go on over restarts of the worker."""
        return self._stats

    @property
    def ready(self) -> bool:
        """Whether a worker takes requests right now. Requests that come while one is restarted wait for it."""
        return self._ready

    @property
    def failure(self) -> str | None:
        """Why no request is taken (not started, given up, closed); None while all is well or will be."""
        return self._refusal

    @property
    def restarts(self) -> int:
        """Worker processes that were started in place of a dead one."""
        return self._worker.restarts if self._worker else 0

    @property
    def replayed(self) -> int:
        """Requests that were given to a new worker because theirs died."""
        return self._replayed

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the newest worker of each slot."""
        return [self._worker.pid] if self._worker and self._worker.pid is not None else []

    async def start(self) -> None:
        """Start the worker and wait until it is ready. Raises the worker's own error, or WorkerError."""
        hooks = Hooks(
            progress=self._progress,
            up=self._up,
            outputs=self._outputs,
            down=self._down,
            lost=self._lost,
            busy=self._busy,
        )
        self._post = Post()
        self._worker = Supervisor(self._post, self._config, self._policy, hooks, self._early)
        try:
            await self._worker.start()
        except BaseException:
            await self.close()
            raise

    async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        """The request's outputs, in order, nothing twice, until one has `finish_reason`.

        Outputs that arrive while the reader is elsewhere come as one. Leaving the iterator early (aclose, or the
        task's cancellation) aborts the request. Raises RequestFailed when no worker can be had.
        """
        if self._refusal is not None:
            raise RequestFailed(f"the request cannot be run: {self._refusal}")
        stream = self._cargo.stream(request, f"{next(self._numbers)}:{request.id}")
        self._streams[stream.wire_id] = stream
        if self._ready:
            self._submit([stream])
        try:
            while True:
                output = await stream.take()
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            self._leave(stream)

    async def close(self) -> None:
        """Stop the worker and remove what it left. Requests in flight fail. May be called twice."""
        self._refuse("the server is shutting down")
        worker, post, self._post = self._worker, self._post, None
        if worker is not None:
            await worker.stop()
        if post is not None:
            await post.close()

    def _submit(self, streams: list[InFlight[Request, Output]]) -> None:
        assert self._worker is not None
        incarnation = self._worker.incarnation
        self._worker.send(self._cargo.submit([stream.submit(incarnation) for stream in streams]))

    def _leave(self, stream: InFlight[Request, Output]) -> None:
        """The reader is gone. What has not ended is aborted, once; with no worker up, forgetting it is enough."""
        if self._streams.pop(stream.wire_id, None) is not None and stream.sent_to is not None and self._ready:
            assert self._worker is not None
            self._worker.send(Abort([stream.wire_id]))
            self._acquit(stream)

    def _suspect(self, stream: InFlight[Request, Output]) -> bool:
        return stream.fruitless >= self._policy.suspect_after

    def _try_suspect(self) -> None:
        """Run the next request that may be what kills workers: one at a time, so that no other is blamed."""
        waiting = (stream for stream in self._streams.values() if stream.sent_to is None and self._suspect(stream))
        self._on_trial = next(waiting, None)
        if self._on_trial is not None:
            self._submit([self._on_trial])

    def _acquit(self, stream: InFlight[Request, Output]) -> None:
        """A suspect got a token, or is gone: the next one may run."""
        if stream is self._on_trial and (stream.advanced or stream.wire_id not in self._streams):
            stream.fruitless = 0
            self._try_suspect()

    def _refuse(self, why: str) -> None:
        """Take no request from now on, and fail those in flight."""
        self._ready = False
        self._refusal = why
        for stream in self._streams.values():
            stream.fail(RequestFailed(f"the request could not be finished: {why}"))
        self._streams.clear()

    def _busy(self) -> bool:
        return self._ready and bool(self._streams)

    def _progress(self, stage: str, done: int, total: int | None) -> None:
        if self._on_progress is not None:
            self._on_progress(stage, done, total)

    def _up(self, info: AnyInfo) -> None:
        assert isinstance(info, self._cargo.info)
        self._info = info
        self._refusal = None
        self._ready = True
        streams = [stream for stream in self._streams.values() if not self._suspect(stream)]
        if streams:
            self._submit(streams)
        self._try_suspect()

    def _outputs(self, message: AnyOutputs) -> None:
        outputs: list[Any] = message.outputs
        for output in outputs:
            # No stream: it was aborted while this was under way.
            stream = self._streams.get(output.id)
            if stream is not None:
                stream.push(output)
                if stream.finished:
                    del self._streams[output.id]
                self._acquit(stream)
        stats: Any = message.stats
        if stats is not None:
            self._stats = self._with_counters(stats, self._retired)
            if self._on_stats is not None:
                self._on_stats(self._stats)

    def _down(self, reason: str) -> None:
        self._ready = False
        self._retired = self._stats = self._with_counters(self._cargo.idle, self._stats)
        self._on_trial = None
        for stream in [stream for stream in self._streams.values() if stream.sent_to is not None]:
            stream.orphan()
            if stream.fruitless < self._policy.max_fruitless:
                self._replayed += 1
            else:
                del self._streams[stream.wire_id]
                why = f"the worker died {stream.fruitless} times in a row with it: {reason}"
                stream.fail(RequestFailed(f"the request was given up: {why}"))

    def _lost(self, reason: str) -> None:
        self._refuse(f"the worker died more often than it is restarted ({self._policy.max_restarts} times): {reason}")

    def _with_counters(self, stats: Stats, earlier: Stats) -> Stats:
        """`stats` with the counters of `earlier` workers added."""
        sums = {name: getattr(stats, name) + getattr(earlier, name) for name in self._cargo.counters}
        return replace(stats, **sums)
