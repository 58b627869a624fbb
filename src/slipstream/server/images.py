"""/v1/images/generations and /v1/images/edits: read, admit, make all images, answer, and tell what happened."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from slipstream.api.image_engine import ImageOutput, Pixels
from slipstream.api.images import (
    CompletedImage,
    GeneratedImage,
    ImageFields,
    ImageGenerationRequest,
    ImageProgress,
    ImagesReply,
    PartialImage,
)
from slipstream.errors import RequestError, RequestFailed
from slipstream.server.body import read_request
from slipstream.server.call import Call, call_of, until_disconnect
from slipstream.server.conduct import conduct
from slipstream.server.events import EventStream
from slipstream.server.front import Front
from slipstream.server.image_coding import encode
from slipstream.server.image_files import PATH
from slipstream.server.image_front import ImageFront
from slipstream.server.image_inputs import all_files, read_edit_body
from slipstream.server.image_work import ImageWork, count, make_work, read_uploads
from slipstream.telemetry.record import ImageOperation, ImageRecord

Read = Callable[[Front, ImageFront, Request, Call], AbstractAsyncContextManager[ImageWork]]


class Images:
    """An ASGI application. `read` admits a request and makes it ready to run; it holds its places while it is open."""

    def __init__(self, front: Front, operation: ImageOperation, read: Read) -> None:
        self.front = front
        self.operation: ImageOperation = operation
        self.read = read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        front, images, request = self.front, self.front.need_images(), Request(scope, receive)
        run = _Run(front, images, call_of(scope), request, self.operation)
        events = EventStream(send)
        await conduct(
            run,
            lambda: self._answer(run, request, receive, events),
            events,
            images.admission,
            front.config.request_timeout,
            (scope, receive, send),
        )

    async def _answer(self, run: _Run, request: Request, receive: Receive, events: EventStream) -> Response | None:
        """The whole answer; None for a stream, which has been written but for its end."""
        self.front.check_open()
        async with self.read(self.front, run.images, request, run.call) as work:
            run.work = work
            maker = _Maker(run, work, str(request.base_url), events)
            async with until_disconnect(receive):
                made = await maker.make_all()
        if work.stream:
            return None
        reply = ImagesReply(created=work.created, data=made, output_format=work.kind, size=work.size)
        return Response(msgspec.json.encode(reply), media_type="application/json")


@asynccontextmanager
async def read_generation(front: Front, images: ImageFront, request: Request, call: Call) -> AsyncIterator[ImageWork]:
    """A JSON body, ready to run. Raises RequestError."""
    body = await read_request(request, ImageGenerationRequest, front.config.max_body_bytes)
    _check(front, images, body)
    with images.admission.admit(count(body)):
        yield make_work(body, None, images.client.info, call)


@asynccontextmanager
async def read_edit(front: Front, images: ImageFront, request: Request, call: Call) -> AsyncIterator[ImageWork]:
    """A form with files or JSON with base64, ready to run. It takes a place before it is read: uploads are not nothing.

    Raises RequestError.
    """
    info = images.client.info
    if not info.edits:
        raise RequestError(
            f"{images.model!r} makes images and edits none: use /v1/images/generations",
            param="model",
            code="wrong_task",
        )
    with images.admission.admit(1):
        async with read_edit_body(request, front.config.max_upload_bytes) as (body, files):
            _check(front, images, body)
            n = count(body)
            work = await images.in_thread(
                lambda: make_work(body, read_uploads(all_files(body, files), info), info, call)
            )
        with images.admission.admit(n - 1):
            yield work


def _check(front: Front, images: ImageFront, body: ImageFields) -> None:
    front.check_open()
    if body.model is None or body.model == images.model:
        return
    if front.text is not None and body.model == front.model:
        raise RequestError(f"{front.model!r} makes no images: {images.model!r} does", param="model", code="wrong_task")
    raise front.unknown_model(body.model)


def image_file(front: Front) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint of the files that URLs name. It asks for no key: their names are secrets."""

    async def serve(request: Request) -> Response:
        return await front.need_images().files.serve(request)

    return serve


class _Maker:
    """Makes a request's images side by side, and tells of them as they come."""

    def __init__(self, run: _Run, work: ImageWork, base_url: str, events: EventStream) -> None:
        self.run = run
        self.work = work
        self.base_url = base_url
        self.events = events
        self._writing = asyncio.Lock()

    async def make_all(self) -> list[GeneratedImage]:
        """All images, in order; empty for a stream. Leaving it in any way aborts those under way."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._make(i)) for i in range(len(self.work.requests))]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [image for task in tasks if (image := task.result()) is not None]

    async def _make(self, index: int) -> GeneratedImage | None:
        request = self.work.requests[index]
        previews = 0
        async with aclosing(self.run.images.client.generate(request)) as outputs:
            async for output in outputs:
                self.run.observe(index, output)
                if output.finish_reason == "error":
                    raise _failed(output)
                if output.image is not None:
                    return await self._finish(index, output, output.image)
                if self.work.stream:
                    previews += await self._tell(index, output, previews)
        raise RuntimeError(f"the engine's outputs ended before {request.id} did")

    async def _tell(self, index: int, output: ImageOutput, previews: int) -> int:
        """Write what a step did; gives the number of previews written. The outputs of meanwhile come as one."""
        events: list[msgspec.Struct] = []
        if self.work.progress:
            events.append(ImageProgress(type=self._type("progress"), **self._shared(index, output)))
        if output.preview is not None:
            events.append(
                PartialImage(
                    type=self._type("partial_image"),
                    **self._shared(index, output),
                    partial_image_index=previews,
                    b64_json=_base64(await self._encode(output.preview)),
                    output_format=self.work.kind,
                    size=self.work.size,
                )
            )
        async with self._writing:
            await self.events.write(events)
        return int(output.preview is not None)

    async def _finish(self, index: int, output: ImageOutput, pixels: Pixels) -> GeneratedImage | None:
        data = await self._encode(pixels)
        made = GeneratedImage(seed=self.work.requests[index].seed)
        if self.work.as_url:
            name = await self.run.images.in_thread(lambda: self.run.images.files.save(data, self.work.kind))
            made.url = self.base_url.rstrip("/") + PATH + name
        else:
            made.b64_json = _base64(data)
        if not self.work.stream:
            return made
        done = CompletedImage(
            type=self._type("completed"),
            **self._shared(index, output),
            b64_json=made.b64_json,
            url=made.url,
            seed=made.seed,
            output_format=self.work.kind,
            size=self.work.size,
        )
        async with self._writing:
            await self.events.write([done])
        return None

    async def _encode(self, pixels: Pixels) -> bytes:
        return await self.run.images.in_thread(partial(encode, pixels, self.work.kind, self.work.quality))

    def _type(self, what: str) -> str:
        return f"{self.run.operation}.{what}"

    def _shared(self, index: int, output: ImageOutput) -> dict[str, Any]:
        return {"created_at": int(time.time()), "index": index, "step": output.step, "steps": output.steps}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _failed(output: ImageOutput) -> RequestError:
    if output.refused:
        return RequestError(output.error or "the engine refused the request")
    return RequestFailed(
        f"the engine could not finish the image: {output.error or 'it gave no reason'}", code="engine_error"
    )


class _Run:
    """What is known of a request while it runs, for its record."""

    def __init__(
        self, front: Front, images: ImageFront, call: Call, request: Request, operation: ImageOperation
    ) -> None:
        self.front = front
        self.images = images
        self.call = call
        self.operation: ImageOperation = operation
        self.work: ImageWork | None = None
        self.error: str | None = None
        self._queued: dict[int, float] = {}
        self._steps: dict[int, int] = {}
        self._done: set[int] = set()
        self._traceparent = request.headers.get("traceparent")
        self._tracestate = request.headers.get("tracestate")

    def observe(self, index: int, output: ImageOutput) -> None:
        """Take note of an output."""
        self._steps[index] = output.step
        if output.queue_seconds is not None:
            self._queued[index] = output.queue_seconds
        if output.image is not None:
            self._done.add(index)

    def report(self) -> None:
        """Write the record. A request that was refused before it could run leaves the access log's line only."""
        work = self.work
        if work is None:
            return
        images = range(len(work.requests))
        unfinished = "abort" if self.error in ("disconnected", "cancelled", "timeout") else "error"
        first = work.requests[0]
        self.front.report_images(
            ImageRecord(
                operation=self.operation,
                request_id=self.call.id,
                response_id=work.id,
                model=self.images.model,
                arrival=self.call.arrival,
                started_ns=self.call.arrival_ns,
                end=time.monotonic(),
                stream=work.stream,
                width=first.width,
                height=first.height,
                steps=first.steps or self.images.client.info.steps,
                sampling={"seed": first.seed},
                queue_seconds=tuple(self._queued.get(i) for i in images),
                steps_done=tuple(self._steps.get(i, 0) for i in images),
                finish_reasons=tuple("stop" if i in self._done else unfinished for i in images),
                error=self.error,
                traceparent=self._traceparent,
                tracestate=self._tracestate,
            )
        )
