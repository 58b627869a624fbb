"""The endpoint of both completions: read, admit, run, answer, and tell what happened, however it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from slipstream.api.engine import TokenOutput
from slipstream.api.openai import SamplingFields
from slipstream.server.body import read_request
from slipstream.server.call import Call, call_of, until_disconnect
from slipstream.server.conduct import conduct
from slipstream.server.events import EventStream
from slipstream.server.front import Front
from slipstream.server.mailbox import Mailbox, running
from slipstream.server.work import Replies
from slipstream.telemetry.record import GenerationRecord, Operation
from slipstream.text.choice import Choice, Delta

Completable = TypeVar("Completable", bound=SamplingFields)

# Sampling values that a span carries, by OpenTelemetry's names.
_SPAN_SAMPLING = ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed")


class Generate(Generic[Completable]):
    """An ASGI application. `count` tells how many sequences a request asks for, `prepare` makes it ready to run."""

    def __init__(
        self,
        front: Front,
        operation: Operation,
        kind: type[Completable],
        count: Callable[[Completable], int],
        prepare: Callable[[Front, Completable, Call], Coroutine[Any, Any, Replies]],
    ) -> None:
        self.front = front
        self.operation = operation
        self.kind = kind
        self.count = count
        self.prepare = prepare

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        front, request, events = self.front, Request(scope, receive), EventStream(send)
        run = _Run(front, call_of(scope), request, self.operation)
        await conduct(
            run,
            lambda: self._answer(run, request, receive, events),
            events,
            front.admission,
            front.config.request_timeout,
            (scope, receive, send),
        )

    async def _answer(self, run: _Run, request: Request, receive: Receive, events: EventStream) -> Response | None:
        """The whole answer; None for a stream, which has been written but for its end."""
        front = self.front
        front.check_open()
        body = await read_request(request, self.kind, front.config.max_body_bytes)
        front.check_open()
        front.check_model(body.model)
        front.check_task("generate")
        with front.admission.admit(self.count(body)):
            async with until_disconnect(receive):
                replies = await self.prepare(front, body, run.call)
                run.replies = replies
                run.stream = bool(body.stream)
                async with running(front.client, replies.work.choices, run.observe) as mailbox:
                    if body.stream:
                        await _stream(replies, mailbox, events)
                        return None
                    whole = await _gather(replies, mailbox)
        return Response(msgspec.json.encode(replies.whole(whole)), media_type="application/json")


async def _gather(replies: Replies, mailbox: Mailbox) -> list[Delta]:
    """Each choice's whole delta, in order."""
    whole: dict[int, Delta] = {}
    async for batch in mailbox.batches():
        for choice, delta in batch:
            if choice.index in whole:
                whole[choice.index].extend(delta)
            else:
                whole[choice.index] = delta
    return [whole[choice.index] for choice in replies.work.choices]


async def _stream(replies: Replies, mailbox: Mailbox, events: EventStream) -> None:
    """Write the chunks as they come; the opening ones with the first."""
    async for batch in mailbox.batches():
        chunks = [] if events.started else replies.opening()
        for choice, delta in batch:
            chunks += replies.chunks(choice, delta)
        await events.write(chunks)
    if replies.work.include_usage:
        await events.write([replies.closing(replies.work.usage())])


class _Run:
    """What is known of a request while it runs, for its record."""

    def __init__(self, front: Front, call: Call, request: Request, operation: Operation) -> None:
        self.front = front
        self.call = call
        self.operation: Operation = operation
        self.replies: Replies | None = None
        self.stream = False
        self.error: str | None = None
        self.traceparent = request.headers.get("traceparent")
        self.tracestate = request.headers.get("tracestate")

    def observe(self, choice: Choice, output: TokenOutput, now: float) -> None:
        """Tell the metrics of an output that `choice` is about to take."""
        if output.token_ids:
            self.front.metrics.tokens(
                len(output.token_ids),
                prompt_tokens=len(choice.request.prompt_token_ids),
                since_arrival=now - self.call.arrival,
                since_last=None if choice.last_token is None else now - choice.last_token,
            )

    def report(self) -> None:
        """Write the record. A request that was refused before it could run leaves the access log's line only."""
        if self.replies is None:
            return
        work = self.replies.work
        choices = work.choices
        firsts = [choice.first_token for choice in choices if choice.first_token is not None]
        unfinished = "abort" if self.error in ("disconnected", "cancelled", "timeout") else "error"
        sampling = {name: getattr(work.params, name) for name in _SPAN_SAMPLING}
        self.front.report(
            GenerationRecord(
                operation=self.operation,
                request_id=self.call.id,
                response_id=work.id,
                model=work.model,
                arrival=self.call.arrival,
                started_ns=self.call.arrival_ns,
                end=time.monotonic(),
                stream=self.stream,
                n=work.params.n,
                max_tokens=work.params.max_tokens,
                sampling={name: value for name, value in sampling.items() if value is not None},
                prompt_tokens=tuple(len(prompt.token_ids) for prompt in work.prompts),
                output_tokens=tuple(choice.output_tokens for choice in choices),
                cached_tokens=work.cached_tokens,
                first_token=min(firsts, default=None),
                queue_seconds=tuple(choice.queue_seconds for choice in choices),
                prefill_seconds=tuple(choice.prefill_seconds for choice in choices),
                decode_seconds=tuple(
                    None if c.first_token is None or c.last_token is None else c.last_token - c.first_token
                    for c in choices
                ),
                finish_reasons=tuple(choice.finish_reason or unfinished for choice in choices),
                error=self.error,
                traceparent=self.traceparent,
                tracestate=self.tracestate,
            )
        )
