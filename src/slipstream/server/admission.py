"""Who gets in: a bound on the sequences in the server, an honest Retry-After, and the drain before an exit."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from slipstream.errors import Overloaded, RequestError, Unavailable

_HISTORY = 64
_LONGEST_WAIT = 60


class Admission:
    """Counts sequences from their admission to their end. One event loop alone uses it."""

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.in_flight = 0
        self.draining = False
        self.cancelled = False
        self._clock = clock
        self._finished: deque[float] = deque(maxlen=_HISTORY)
        self._tasks: set[asyncio.Task[object]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Hold places for `count` sequences while the block runs, in the task that may be cancelled by `cancel_all`.

        Raises Unavailable while draining, Overloaded (with a Retry-After) when the places are taken, and RequestError
        when so many could never get in.
        """
        if self.draining:
            raise draining()
        if count > self.limit:
            raise RequestError(
                f"the request asks for {count} replies in all and the server takes at most {self.limit} at once: "
                "send fewer prompts, or a smaller n",
                param="n",
                code="too_many_choices",
            )
        if self.in_flight + count > self.limit:
            wait = self.retry_after(count)
            raise Overloaded(
                f"the queue is full: {self.in_flight} of {self.limit} places are taken; retry in {wait} s",
                retry_after=wait,
            )
        task = asyncio.current_task()
        self.in_flight += count
        self._idle.clear()
        if task is not None:
            self._tasks.add(task)
        try:
            yield
        finally:
            self.in_flight -= count
            self._finished.extend([self._clock()] * count)
            if task is not None:
                self._tasks.discard(task)
            if not self.in_flight:
                self._idle.set()

    def retry_after(self, count: int) -> int:
        """Whole seconds until `count` places are likely free, 1 to 60, at the pace of the last sequences to finish."""
        excess = self.in_flight + count - self.limit
        if len(self._finished) < 2:
            return 1
        # The time up to now counts too: a server that stalls since its last reply is not a fast one.
        pace = (self._clock() - self._finished[0]) / (len(self._finished) - 1)
        return max(1, min(_LONGEST_WAIT, math.ceil(excess * pace)))

    async def drain(self, timeout: float) -> bool:
        """Take nothing new, and wait until all have finished, at most `timeout` seconds. Says whether they have."""
        self.draining = True
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def cancel_all(self) -> int:
        """Cancel the tasks of all admitted requests; gives their number."""
        self.cancelled = True
        for task in list(self._tasks):
            task.cancel()
        return len(self._tasks)


def draining() -> Unavailable:
    """What a request gets while the server stops."""
    return Unavailable("the server is stopping and takes no new requests: send it to another one", code="draining")
