"""An engine as the HTTP process sees it: submit a request, read its outputs as they come, whatever dies underneath."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol, TypeVar

from slipstream.api.engine import EngineInfo, EngineRequest, EngineStats, TokenOutput
from slipstream.api.image_engine import ImageEngineInfo, ImageEngineStats, ImageOutput, ImageRequest

Request = TypeVar("Request", contravariant=True)
Output = TypeVar("Output", covariant=True)
Info = TypeVar("Info", covariant=True)
Stats = TypeVar("Stats", covariant=True)


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

    async def close(self) -> None:
        """Stop the workers."""


EngineClient = Client[EngineRequest, TokenOutput, EngineInfo, EngineStats]
ImageClient = Client[ImageRequest, ImageOutput, ImageEngineInfo, ImageEngineStats]
