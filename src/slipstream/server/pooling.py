"""The endpoints of vectors and scores: read, admit, run all inputs, answer, and tell what happened.

A request may have more inputs than the engine should hold: it takes a share of the places, and runs its inputs in turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from slipstream.api.engine import POOLED, EngineRequest
from slipstream.api.pooling import PoolingFields, PoolingUsage
from slipstream.errors import RequestFailed
from slipstream.server.body import read_request
from slipstream.server.call import Call, call_of, until_disconnect
from slipstream.server.conduct import conduct
from slipstream.server.events import EventStream
from slipstream.server.front import Front, Task
from slipstream.telemetry.record import GenerationRecord, Operation
from slipstream.text.pairs import Pooled

SHARE = 4
"""One request takes at most so great a part of the places: a quarter."""

Wanted = TypeVar("Wanted", bound=PoolingFields)


@dataclass(frozen=True)
class PoolingWork:
    """A request ready to run. `answer` makes the reply of the inputs' vectors."""

    id: str
    inputs: Sequence[Pooled]
    priority: int
    answer: Callable[[Sequence[np.ndarray], PoolingUsage], msgspec.Struct]

    @property
    def usage(self) -> PoolingUsage:
        """The token counts."""
        count = sum(len(one.token_ids) for one in self.inputs)
        return PoolingUsage(prompt_tokens=count, total_tokens=count)


class Pool(Generic[Wanted]):
    """An ASGI application. `tasks`: what the engine must do for it. `prepare` makes a request ready to run."""

    def __init__(
        self,
        front: Front,
        operation: Operation,
        kind: type[Wanted],
        tasks: tuple[Task, ...],
        count: Callable[[Wanted], int],
        prepare: Callable[[Front, Wanted, Call], Coroutine[Any, Any, PoolingWork]],
    ) -> None:
        self.front = front
        self.operation: Operation = operation
        self.kind = kind
        self.tasks = tasks
        self.count = count
        self.prepare = prepare

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        front = self.front
        run = _Run(front, call_of(scope), Request(scope, receive), self.operation)
        await conduct(
            run,
            lambda: self._answer(run, receive),
            EventStream(send),
            front.admission,
            front.config.request_timeout,
            (scope, receive, send),
        )

    async def _answer(self, run: _Run, receive: Receive) -> Response:
        front = self.front
        front.check_open()
        body = await read_request(run.request, self.kind, front.config.max_body_bytes)
        front.check_open()
        front.check_model(body.model)
        front.check_task(*self.tasks)
        places = min(max(1, self.count(body)), max(1, front.admission.limit // SHARE))
        with front.admission.admit(places):
            async with until_disconnect(receive):
                work = await self.prepare(front, body, run.call)
                run.work = work
                vectors = await vectors_of(front, work, run.call, places)
                reply = await front.in_thread(lambda: msgspec.json.encode(work.answer(vectors, work.usage)))
        return Response(reply, media_type="application/json")


async def vectors_of(front: Front, work: PoolingWork, call: Call, places: int) -> list[np.ndarray]:
    """The vectors of all inputs, `places` of them at a time; leaving it in any way aborts those under way.

    Raises RequestFailed where the engine gives up on one.
    """
    found: list[np.ndarray | None] = [None] * len(work.inputs)
    left = iter(enumerate(work.inputs))

    async def take() -> None:
        for i, one in left:
            found[i] = await _vector(front, f"{work.id}-{i}", one, work.priority, call)
            front.metrics.pooled(len(one.token_ids))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(places):
                group.create_task(take())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [vector for vector in found if vector is not None]


async def _vector(front: Front, id: str, one: Pooled, priority: int, call: Call) -> np.ndarray:
    request = EngineRequest(
        id=id,
        prompt_token_ids=one.token_ids,
        sampling=POOLED,
        priority=priority,
        arrival=call.arrival,
        second_from=one.second_from,
    )
    async with aclosing(front.client.generate(request)) as outputs:
        async for output in outputs:
            if output.pooled is not None:
                return np.frombuffer(output.pooled, "<f4")
            if output.finish_reason is not None:
                raise RequestFailed(
                    f"the engine could not finish the request: {output.error or output.finish_reason}",
                    code="engine_error",
                )
    raise RuntimeError(f"the engine's outputs ended before {id} did")


class _Run:
    """What is known of a request while it runs, for its record."""

    def __init__(self, front: Front, call: Call, request: Request, operation: Operation) -> None:
        self.front = front
        self.call = call
        self.request = request
        self.operation: Operation = operation
        self.work: PoolingWork | None = None
        self.error: str | None = None

    def report(self) -> None:
        """Write the record. A request that was refused before it could run leaves the access log's line only."""
        work = self.work
        if work is None:
            return
        unfinished = "abort" if self.error in ("disconnected", "cancelled", "timeout") else "error"
        count = len(work.inputs)
        self.front.report(
            GenerationRecord(
                operation=self.operation,
                request_id=self.call.id,
                response_id=work.id,
                model=self.front.model,
                arrival=self.call.arrival,
                started_ns=self.call.arrival_ns,
                end=time.monotonic(),
                stream=False,
                n=1,
                max_tokens=None,
                prompt_tokens=tuple(len(one.token_ids) for one in work.inputs),
                output_tokens=(0,) * count,
                decode_seconds=(None,) * count,
                finish_reasons=("stop" if self.error is None else unfinished,) * count,
                error=self.error,
                traceparent=self.request.headers.get("traceparent"),
                tracestate=self.request.headers.get("tracestate"),
            )
        )
