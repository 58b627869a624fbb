"""An engine as the HTTP process sees it: submit a request, read its outputs as they come, whatever dies underneath."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from slipstream.api.engine import EngineInfo, EngineRequest, EngineStats, TokenOutput
from slipstream.api.image_engine import ImageEngineInfo, ImageEngineStats, ImageOutput, ImageRequest

Request = TypeVar("Request", contravariant=True)
Output = TypeVar("Output", covariant=True)
Info = TypeVar("Info", covariant=True)
Stats = TypeVar("Stats", covariant=True)


State = Literal["starting", "ready", "draining", "restarting", "reloading", "lost", "left"]
"""`draining`: it finishes what it has and gets nothing new. `lost`: it died too often. `left`: it was told to go."""


@dataclass(frozen=True, kw_only=True)
class WorkerState:
    """What people and metrics are told of one worker.

    `reason`: why it is not ready, where that is known. `requests`: those that it has. `processors`: those that it may
    run on, None: all of its parent's; `threads`: how many it was told to start, None: as many. `info`: None before it
    was ready once; `stats`: its newest.
    """

    index: int
    role: Literal["both", "prefill", "decode"]
    state: State
    reason: str | None
    model: str
    pid: int | None
    restarts: int
    requests: int
    processors: tuple[int, ...] | None
    threads: int | None
    info: Any
    stats: Any


class Client(Protocol[Request, Output, Info, Stats]):
    """What the server needs of an engine. `WorkerClient` speaks to worker processes; tests use one in memory."""

    @property
    def info(self) -> Info:
        """What the engine is. Known once `start` has returned."""

    @property
    def stats(self) -> Stats:
        """The newest statistics, at most a second old while steps run."""

    @property
    def ready(self) -> bool:
        """Whether a worker can take requests right now (False while one is restarted)."""

    @property
    def failure(self) -> str | None:
        """Why no request is taken (not started, given up, closed); None while all is well or will be again."""

    @property
    def restarts(self) -> int:
        """How often a worker was started again after it died."""

    async def start(self) -> None:
        """Start the worker and wait until it is ready. Raises WorkerError (or the worker's own error) if it cannot."""

    def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        """The request's outputs, in order, nothing twice, until one has `finish_reason`.

        Closing the iterator early (or cancelling its task) aborts the request. A worker's death is invisible here but
        for the delay; when no worker can be had, raises RequestFailed.
        """

    @property
    def workers(self) -> Sequence[WorkerState]:
        """The state of each worker."""

    async def drain(self, index: int, timeout: float) -> int:
        """Let a worker leave: it finishes its requests within `timeout` seconds, others take the rest (their number).

        Raises NotFound, and Conflict where it cannot leave.
        """

    async def reload(self, model: str | None, timeout: float, index: int | None = None) -> int:
        """Start the workers anew one by one, or one of them, with the checkpoint in the folder `model`, or its own.

        No request is lost; the number of those that were moved is returned. Raises NotFound, Conflict, and
        RequestFailed where a worker cannot start so.
        """

    async def close(self) -> None:
        """Stop the workers."""


EngineClient = Client[EngineRequest, TokenOutput, EngineInfo, EngineStats]
ImageClient = Client[ImageRequest, ImageOutput, ImageEngineInfo, ImageEngineStats]
