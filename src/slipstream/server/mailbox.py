"""Where a request's choices leave what they have gained, and its response picks it up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager

from slipstream.api.engine import TokenOutput
from slipstream.cluster.client import EngineClient
from slipstream.text.choice import Choice, Delta


class Mailbox:
    """Holds at most one delta a choice: while the reader is slow, a choice's deltas merge into one.

    So memory is bounded by the replies themselves, and a reader that catches up gets all in one event.
    """

    def __init__(self, choices: Sequence[Choice]) -> None:
        self._open = len(choices)
        self._pending: dict[int, tuple[Choice, Delta]] = {}
        self._error: BaseException | None = None
        self._news = asyncio.Event()

    def put(self, choice: Choice, delta: Delta) -> None:
        """Leave a delta."""
        if choice.index in self._pending:
            self._pending[choice.index][1].extend(delta)
        else:
            self._pending[choice.index] = (choice, delta)
        if delta.finish_reason is not None:
            self._open -= 1
        self._news.set()

    def fail(self, error: BaseException) -> None:
        """Make the reader raise, once it has read what is there."""
        self._error = self._error or error
        self._news.set()

    async def batches(self) -> AsyncIterator[list[tuple[Choice, Delta]]]:
        """What has come since the last batch, in order of choices, until all have finished."""
        while self._open or self._pending:
            await self._news.wait()
            self._news.clear()
            batch = [self._pending[i] for i in sorted(self._pending)]
            self._pending.clear()
            if batch:
                yield batch
            if self._error is not None:
                raise self._error


@asynccontextmanager
async def running(
    client: EngineClient, choices: Sequence[Choice], observe: Callable[[Choice, TokenOutput, float], None]
) -> AsyncIterator[Mailbox]:
    """Run the choices while the block does; leaving it in any way closes the engine's iterators of those unfinished.

    `observe` is called with each output and its time before the choice takes it.
    """
    mailbox = Mailbox(choices)
    tasks = [asyncio.create_task(_drive(client, choice, mailbox, observe)) for choice in choices]
    try:
        yield mailbox
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _drive(
    client: EngineClient, choice: Choice, mailbox: Mailbox, observe: Callable[[Choice, TokenOutput, float], None]
) -> None:
    try:
        # Closing it is how a request is aborted (a stop string was found, the client has gone).
        async with aclosing(client.generate(choice.request)) as outputs:
            async for output in outputs:
                now = time.monotonic()
                observe(choice, output, now)
                mailbox.put(choice, choice.feed(output, now))
                if choice.finish_reason is not None:
                    return
        raise RuntimeError(f"the engine's outputs ended before {choice.request.id} did")
    except Exception as error:
        mailbox.fail(error)
