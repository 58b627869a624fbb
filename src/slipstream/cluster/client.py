"""The engine as the HTTP process sees it: submit a request, read its tokens as they come, whatever dies underneath."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from slipstream.api.engine import EngineInfo, EngineRequest, EngineStats, TokenOutput


class EngineClient(Protocol):
    """What the server needs of an engine. `WorkerClient` speaks to worker processes; tests use one in memory."""

    @property
    def info(self) -> EngineInfo:
        """What the engine is. Known once `start` has returned."""

    @property
    def stats(self) -> EngineStats:
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

    def generate(self, request: EngineRequest) -> AsyncGenerator[TokenOutput, None]:
        """The request's outputs, in order, each token once, until one has `finish_reason`.

        Closing the iterator early (or cancelling its task) aborts the request. A worker's death is invisible here but
        for the delay; when no worker can be had, raises RequestFailed.
        """

    async def close(self) -> None:
        """Stop the workers."""
