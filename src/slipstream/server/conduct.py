"""How a request's answer is led to its end, whichever way it ends: answered, refused, left, timed out, cut off."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from slipstream.errors import RequestError, RequestFailed, Unavailable
from slipstream.server.admission import Admission
from slipstream.server.body import Disconnected
from slipstream.server.call import Call, deadline
from slipstream.server.events import EventStream

log = logging.getLogger("slipstream.server")


class Run(Protocol):
    """What is known of a request while it runs. `error`: the code of what went wrong, None while nothing did."""

    call: Call
    error: str | None

    def report(self) -> None:
        """Tell the log, the metrics and the tracing how it ended."""


async def conduct(
    run: Run,
    answer: Callable[[], Awaitable[Response | None]],
    events: EventStream,
    admission: Admission,
    timeout: float | None,
    connection: tuple[Scope, Receive, Send],
) -> None:
    """Answer one request. `answer` gives the whole answer, or None for a stream that it wrote but for its end.

    RequestErrors before the first byte are raised, later ones go into the stream.
    """
    try:
        async with deadline(timeout, run.call):
            response = await answer()
        await (events.end() if response is None else response(*connection))
    except Disconnected:
        run.error = "disconnected"
    except asyncio.CancelledError:
        run.error = "cancelled"
        task = asyncio.current_task()
        if not admission.cancelled or task is None:
            raise
        task.uncancel()
        await _fail(run, Unavailable("the server stopped before the request was done", code="stopped"), events)
    except RequestError as error:
        await _fail(run, error, events)
    except Exception:
        if not events.started:
            run.error = RequestFailed.kind
            raise
        log.exception("a stream failed")
        await _fail(run, RequestFailed("internal error", code="internal_error"), events)
    finally:
        run.report()


async def _fail(run: Run, error: RequestError, events: EventStream) -> None:
    """Tell the client: as an event of a stream that has begun, or by raising."""
    run.error = error.code or error.kind
    if not events.started:
        raise error
    await events.fail(error)
