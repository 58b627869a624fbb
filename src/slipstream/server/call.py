"""One HTTP request on its way through the server: its id and arrival, and the events that end it early."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.types import Receive, Scope

from slipstream.errors import RequestTimeout
from slipstream.server.body import Disconnected

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True)
class Call:
    """`id`: the client's X-Request-Id if it is a harmless one, else drawn. `arrival`: monotonic seconds."""

    id: str
    arrival: float = field(default_factory=time.monotonic)
    arrival_ns: int = field(default_factory=time.time_ns)


def new_call(wanted: str | None) -> Call:
    """A call that begins now."""
    usable = wanted is not None and _ID.fullmatch(wanted) is not None
    return Call(wanted if wanted is not None and usable else secrets.token_hex(16))


def call_of(scope: Scope) -> Call:
    """The call that the outermost middleware put into the scope."""
    call: Call = scope["slipstream.call"]
    return call


@asynccontextmanager
async def deadline(seconds: float | None, call: Call) -> AsyncIterator[None]:
    """Cancel the block `seconds` after the call's arrival. Raises RequestTimeout then."""
    left = None if seconds is None else call.arrival + seconds - time.monotonic()
    try:
        async with asyncio.timeout(left) as timeout:
            yield
    except TimeoutError:
        if not timeout.expired():
            raise
        raise RequestTimeout(
            f"the request ran past the server's limit of {seconds:g} s and was cancelled", code="timeout"
        ) from None


@asynccontextmanager
async def until_disconnect(receive: Receive) -> AsyncIterator[None]:
    """Cancel the block when the client goes away. Raises Disconnected then. The request's body must have been read."""
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
        if gone:
            # The block ended between the watcher's call to cancel and its delivery: take delivery here.
            await asyncio.sleep(0)
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise Disconnected from None
        raise
    finally:
        watcher.cancel()
