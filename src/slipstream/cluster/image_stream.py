"""One picture's progress between the worker's socket and its reader."""

from __future__ import annotations

import asyncio
from collections import deque

from msgspec.structs import replace

from slipstream.api.image_engine import ImageOutput, ImageRequest, Pixels
from slipstream.errors import RequestError


class ImageStream:
    """What `stream.Stream` is to tokens: a picture in flight, and all that is needed to begin it anew elsewhere.

    A reader that is slow gets the newest progress; what was told between is dropped. It gets every preview: a request
    has few, and they are small. A picture that begins anew after a worker's death is the same picture: its progress is
    not told again until it is further than before.
    """

    def __init__(self, request: ImageRequest) -> None:
        self.request = request
        self.finished = False
        self.fruitless = 0
        self._advanced = False
        self._step = 0
        self._steps = 0
        self._previews: deque[Pixels] = deque()
        self._last: ImageOutput | None = None
        self._queue_seconds: float | None = None
        self._was_queued = False
        self._failure: RequestError | None = None
        self._news = asyncio.Event()

    @property
    def text(self) -> list[int]:
        """Nothing that a prefix cache would know."""
        return []

    def submit(self, wire_id: str) -> ImageRequest:
        """The whole request: a picture has no state that could be kept."""
        self._advanced = False
        return replace(self.request, id=wire_id)

    def orphan(self) -> None:
        """Note that the worker that held this request died."""
        self.fruitless = 0 if self._advanced else self.fruitless + 1

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
        elif output.preview is not None:
            self._previews.append(output.preview)
        self._step, self._steps = max(self._step, output.step), output.steps or self._steps
        self._news.set()

    def fail(self, error: RequestError) -> None:
        """End with an error."""
        self.finished = True
        self._failure = error
        self._news.set()

    async def take(self) -> ImageOutput:
        """The newest of all that came since the last call, or the next preview; waits until there is something.

        Raises what failed it.
        """
        await self._news.wait()
        if self._failure is not None:
            raise self._failure
        preview = self._previews.popleft() if self._previews else None
        queue_seconds, self._queue_seconds = self._queue_seconds, None
        last = self._last if preview is None else None
        if not self._previews and (self._last is None or last is not None):
            self._news.clear()
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
