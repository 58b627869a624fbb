"""Changes while requests run: a worker leaves, or gets other weights, and no request is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from slipstream.cluster.config import WorkerConfig
from slipstream.cluster.slot import Slot
from slipstream.errors import Conflict, NotFound, RequestFailed, SlipstreamError

logger = logging.getLogger(__name__)

AnySlot = Slot[Any, Any, Any, Any]


class Rolling:
    """Drains and reloads the workers of one client, one change at a time.

    A change goes on when whoever asked for it has gone: half of one would leave a slot without a process.
    """

    def __init__(
        self,
        slots: Sequence[AnySlot],
        take_away: Callable[[AnySlot], int],
        settings: Callable[[AnySlot, str], WorkerConfig],
    ) -> None:
        """`take_away(slot)`: give what a worker has to others; `settings(slot, model)`: what a process is told."""
        self._slots = slots
        self._take_away = take_away
        self._settings = settings
        self._change: asyncio.Task[int] | None = None
        self._generation = 0

    async def drain(self, index: int, timeout: float) -> int:
        """Let a worker finish its requests, at most `timeout` seconds, move the rest to others, and end its process.

        Returns the number of requests moved. Raises NotFound for a worker that there is not, and Conflict for the last
        one or while another change is made.
        """
        slot = self._slot(index)
        if not any(other.may_return for other in self._slots if other is not slot):
            raise Conflict(f"worker {index} is the last one: name no worker, and the whole server drains and ends")
        return await self._run(self._drain(slot, timeout))

    async def reload(self, model: str | None, timeout: float, index: int | None = None) -> int:
        """Start the workers anew, one after the other, with the checkpoint in the folder `model` (None: their own).

        A worker first finishes its requests, at most `timeout` seconds; others take the rest, or, if there are none,
        it goes on with them itself with the new weights. A worker that had left comes back. Returns the number of
        requests moved. Raises NotFound and Conflict as `drain` does, and RequestFailed where a worker cannot start: it
        runs the old weights again then, and those after it still do.
        """
        slots = list(self._slots) if index is None else [self._slot(index)]
        return await self._run(self._reload(slots, model, timeout))

    async def close(self) -> None:
        """Stop the change that is being made, if there is one."""
        if self._change is not None:
            self._change.cancel()
            await asyncio.wait({self._change})

    def _slot(self, index: int) -> AnySlot:
        if not 0 <= index < len(self._slots):
            raise NotFound(f"there is no worker {index}: they are 0 to {len(self._slots) - 1}", param="worker")
        return self._slots[index]

    async def _run(self, change: Coroutine[Any, Any, int]) -> int:
        if self._change is not None and not self._change.done():
            change.close()
            raise Conflict("workers are being changed: try again when that is done")
        self._change = asyncio.get_running_loop().create_task(change, name="slipstream-rolling")
        self._change.add_done_callback(_log_failure)
        return await asyncio.shield(self._change)

    async def _drain(self, slot: AnySlot, timeout: float) -> int:
        moved = await self._vacate(slot, timeout)
        assert slot.worker is not None
        await slot.worker.stop()
        if slot.state != "left":
            slot.down("left", "it was drained")
            logger.info("worker %d has left; %d requests were moved", slot.index, moved)
        return moved

    async def _reload(self, slots: Sequence[AnySlot], model: str | None, timeout: float) -> int:
        moved = 0
        self._generation += 1
        for slot in slots:
            moved += await self._vacate(slot, timeout)
            assert slot.worker is not None
            before = slot.generation, slot.model
            slot.generation, slot.model = self._generation, model or slot.model
            slot.down("reloading", "it is started anew")
            try:
                await slot.worker.replace(self._settings(slot, slot.model))
            except SlipstreamError as error:
                slot.generation, slot.model = before
                raise RequestFailed(
                    f"worker {slot.index} could not start with {model or slot.model}: {error}. It is started again "
                    "as it was, and the workers after it were not touched",
                    code="reload_failed",
                ) from None
            logger.info("worker %d runs %s", slot.index, slot.model)
        return moved

    async def _vacate(self, slot: AnySlot, timeout: float) -> int:
        """Give a worker nothing new, wait until it has finished what it has, and move what it has not."""
        if not slot.may_return:
            return 0
        if slot.alive:
            slot.state = "draining"
        try:
            async with asyncio.timeout(timeout):
                await slot.emptied()
        except TimeoutError:
            pass
        # It may have died meanwhile, and be up again.
        if slot.alive:
            slot.state = "draining"
        return self._take_away(slot)


def _log_failure(change: asyncio.Task[int]) -> None:
    if not change.cancelled() and (error := change.exception()) is not None:
        logger.error("a change of workers failed: %s", error)
