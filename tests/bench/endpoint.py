"""An OpenAI endpoint with known delays and faults, in a thread of the test."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


@dataclass
class Endpoint:
    """Switches and records. `fault` maps the number of a request (0, 1, ... with the warm-up) to a kind of failure."""

    delay: float = 0.0
    gap: float = 0.0
    tokens_per_chunk: int = 1
    usage: bool = True
    key: str | None = None
    stop_after: int | None = None
    fault: dict[int, str] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    open_now: int = 0
    most_open: int = 0
    url: str = ""

    async def models(self, request: Request) -> Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "no"}}, 401)
        return JSONResponse({"data": [{"id": "toy"}]})

    async def generate(self, request: Request) -> Response:
        number = len(self.bodies)
        body = await request.json()
        self.bodies.append(body)
        fault = self.fault.get(number)
        if fault == "busy":
            return JSONResponse({"error": {"message": "The queue is full."}}, 429)
        return StreamingResponse(self.stream(body, fault), media_type="text/event-stream")

    async def stream(self, body: dict[str, Any], fault: str | None) -> AsyncIterator[bytes]:
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            await asyncio.sleep(self.delay)
            tokens = min(body["max_tokens"], self.stop_after or body["max_tokens"])
            chunks = -(-tokens // self.tokens_per_chunk)
            chat = "messages" in body
            if chat:
                yield event({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
            for i in range(chunks):
                if fault == "cut" and i == 2:
                    return
                if fault == "error" and i == 2:
                    yield event({"error": {"message": "The worker died."}})
                    return
                if fault == "hang" and i == 2:
                    await asyncio.sleep(60)
                yield event({"choices": [{"delta": {"content": "x"}} if chat else {"text": "x"}]})
                await asyncio.sleep(self.gap)
            yield event({"choices": [{"delta": {}, "text": "", "finish_reason": "length"}]})
            if self.usage:
                prompt = body.get("prompt") or body["messages"][0]["content"].split()
                yield event({"choices": [], "usage": {"prompt_tokens": len(prompt), "completion_tokens": tokens}})
            yield b"data: [DONE]\n\n"
        finally:
            self.open_now -= 1


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


@contextmanager
def running() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    app = Starlette(
        routes=[
            Route("/v1/models", endpoint.models),
            Route("/v1/completions", endpoint.generate, methods=["POST"]),
            Route("/v1/chat/completions", endpoint.generate, methods=["POST"]),
        ]
    )
    config = uvicorn.Config(app, port=0, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline and thread.is_alive(), "the test's server did not start"
        time.sleep(0.01)
    endpoint.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield endpoint
    finally:
        server.should_exit = True
        thread.join(10)
