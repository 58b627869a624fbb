"""One picture's progress between the worker's socket and its reader."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from slipstream.api.image_engine import ImageOutput, ImageRequest, Pixels
from slipstream.errors import RequestError


class ImageStream:
    """What `stream.Stream` is to tokens: a picture in flight, and all that is needed to begin it anew elsewhere.

    A reader that is slow gets the newest progress and preview; those between are dropped, so that memory stays at one
    preview and one picture. A picture that begins anew after a worker's death is the same picture, so its progress is
    not told again until it is further than before.
    """

    def __init__(self, request: ImageRequest, wire_id: str) -> None:
        self.request = request
        self.wire_id = wire_id
        self.sent_to: int | None = None
        self.finished = False
        self.fruitless = 0
        self._advanced = False
        self._step = 0
        self._steps = 0
        self._preview: Pixels | None = None
        self._last: ImageOutput | None = None
        self._queue_seconds: float | None = None
        self._was_queued = False
        self._failure: RequestError | None = None
        self._news = asyncio.Event()

    def submit(self, incarnation: int) -> ImageRequest:
        """The whole request: a picture has no state that could be kept."""
        self.sent_to = incarnation
        self._advanced = False
        return replace(self.request, id=self.wire_id)

    def orphan(self) -> None:
        """Note that the worker that held this request died."""
        self.fruitless = 0 if self._advanced else self.fruitless + 1
        self.sent_to = None

    @property
    def advanced(self) -> bool:
        """Whether a step was run for it since it was last submitted."""
        return self._advanced

    def push(self, output: ImageOutput) -> None:
        """Take a step's output."""
        self._advanced = True
        if output.queue_seconds is not None and not self._was_queued:
            self._queue_seconds = output.queue_seconds
            self._was_queued = True
        if output.finish_reason is not None:
            self._last = output
            self.finished = True
        elif output.step <= self._step:
            return
        else:
            self._preview = output.preview or self._preview
        self._step, self._steps = max(self._step, output.step), output.steps or self._steps
        self._news.set()

    def fail(self, error: RequestError) -> None:
        """End with an error."""
        self.finished = True
        self._failure = error
        self._news.set()

    async def take(self) -> ImageOutput:
        """The newest of all that came since the last call; waits until there is something. Raises what failed it."""
        await self._news.wait()
        self._news.clear()
        if self._failure is not None:
            raise self._failure
        preview, self._preview = self._preview, None
        queue_seconds, self._queue_seconds = self._queue_seconds, None
        last = self._last
        return ImageOutput(
            id=self.request.id,
            step=self._step,
            steps=self._steps,
            preview=preview,
            queue_seconds=queue_seconds,
            image=None if last is None else last.image,
            finish_reason=None if last is None else last.finish_reason,
            error=None if last is None else last.error,
            refused=last is not None and last.refused,
        )
