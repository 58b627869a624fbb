"""A small server that looks like Slipstream's to the page: static files, models, streams, metrics, faults on demand.

The first word of a message chooses the answer or the fault. The headers forbid inline code and other origins, so
a page that needs either fails its tests.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from slipstream.server.page import POLICY

STATIC = str(files("slipstream.server") / "static")

XSS = (
    '<img src=x onerror="window.hacked = 1"><script>window.hacked = 2</script>\n\n'
    "```html\n<svg onload='window.hacked = 3'></svg>\n```\n\n[click](javascript:window.hacked=4) **<b>bold</b>**"
)
ANSWERS = {
    "xss": XSS,
    "markdown": (
        "# Title\n\nSome *slanted* and **heavy** `code`.\n\n- one\n- two\n  - inner\n\n```python\nprint('<hi>')\n```"
    ),
    "unicode": "Grüße, 世界 🌍.",
}


@dataclass
class Fake:
    """What the server was asked, and the switches that tests set."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    disconnects: int = 0
    busy_for: int = 0
    retry_after: str = "1"
    chat_template: bool = True
    require_key: str | None = None
    metrics_up: bool = True
    metrics_polls: int = 0
    tokens: int = 0
    delay: float = 0.02
    url: str = ""


def error(status: int, message: str, *, code: str | None = None, param: str | None = None, **headers: str) -> Response:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
    return JSONResponse(body, status, headers={k.replace("_", "-"): v for k, v in headers.items()})


def build(fake: Fake) -> Starlette:
    """The app; `app.state.fake` may be replaced between tests: a stream stays with the one it began with."""

    async def models(request: Request) -> Response:
        fake: Fake = request.app.state.fake
        if fake.require_key and request.headers.get("authorization") != f"Bearer {fake.require_key}":
            return error(401, "No API key was given.")
        return JSONResponse({"object": "list", "data": [{"id": "smollm2-135m", "object": "model"}]})

    async def answer(request: Request) -> Response:
        fake: Fake = request.app.state.fake
        body = await request.json()
        fake.bodies.append(body)
        fake.paths.append(request.url.path)
        fake.keys.append(request.headers.get("authorization"))
        chat = "messages" in body
        if fake.require_key and fake.keys[-1] != f"Bearer {fake.require_key}":
            return error(401, "No API key was given.")
        if chat and not fake.chat_template:
            return error(400, "The model has no chat template.", code="no_chat_template")
        if fake.busy_for:
            fake.busy_for -= 1
            return error(429, "The queue is full.", code="queue_full", Retry_After=fake.retry_after)
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        if prompt.startswith("refuse"):
            return error(400, "max_tokens is more than the context leaves.", param="max_tokens")
        return StreamingResponse(stream(fake, prompt, chat), media_type="text/event-stream")

    async def stream(fake: Fake, prompt: str, chat: bool) -> AsyncIterator[bytes]:
        first = prompt.split()[0]
        text = ANSWERS.get(first, "Paris is the capital of France.")
        pieces = [text[i : i + 4] for i in range(0, len(text), 4)]
        if first == "endless":
            pieces = ["on and "] * 10_000

        def event(choices: list[Any], **extra: Any) -> bytes:
            return b"data: " + json.dumps({"choices": choices, **extra}, ensure_ascii=False).encode() + b"\n\n"

        try:
            for i, piece in enumerate(pieces):
                if first == "broken" and i == 3:
                    yield b'data: {"error": {"message": "The worker died twice."}}\n\n'
                    return
                if first == "cut" and i == 3:
                    return
                part = {"delta": {"content": piece}} if chat else {"text": piece}
                fake.tokens += 1
                data = event([{"index": 0, **part, "finish_reason": None}])
                # Cut in the middle: the page has to join events, and the bytes of a character.
                yield data[: len(data) // 2]
                yield data[len(data) // 2 :]
                await asyncio.sleep(fake.delay)
            reason = "length" if first == "long" else "stop"
            yield event([{"index": 0, **({"delta": {}} if chat else {"text": ""}), "finish_reason": reason}])
            usage = {"prompt_tokens": 9, "completion_tokens": len(pieces), "total_tokens": 9 + len(pieces)}
            yield event([], usage=usage)
            yield b"data: [DONE]\n\n"
        except asyncio.CancelledError:
            fake.disconnects += 1
            raise

    async def metrics(request: Request) -> Response:
        fake: Fake = request.app.state.fake
        fake.metrics_polls += 1
        if not fake.metrics_up:
            return PlainTextResponse("down", 503)
        return PlainTextResponse(metrics_text(fake.metrics_polls, fake.tokens))

    async def index(request: Request) -> Response:
        return FileResponse(f"{STATIC}/index.html", headers={"Content-Security-Policy": POLICY})

    app = Starlette(
        routes=[
            Route("/", index),
            Route("/v1/models", models),
            Route("/v1/chat/completions", answer, methods=["POST"]),
            Route("/v1/completions", answer, methods=["POST"]),
            Route("/metrics", metrics),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]
    )
    app.state.fake = fake
    return app


def metrics_text(polls: int, tokens: int) -> str:
    """A server under a steady load that swings a little; counters only grow."""
    generated = 40 * polls + 7 * (polls % 5) + tokens
    seen = 3 * polls
    ttft = [(0.05, seen), (0.1, 2 * seen), (0.25, 3 * seen), ("+Inf", 3 * seen)]
    itl = [(0.005, 10 * seen), (0.01, 28 * seen), (0.025, 30 * seen), ("+Inf", 30 * seen)]
    lines = [
        "# HELP vllm:num_requests_running Requests in the running batch.",
        "# TYPE vllm:num_requests_running gauge",
        f'vllm:num_requests_running{{engine="0",model_name="a \\"b\\" {{c}}"}} {3 + polls % 4}',
        f'vllm:num_requests_waiting{{engine="0"}} {max(0, polls % 7 - 3)}',
        f'vllm:kv_cache_usage_perc{{engine="0"}} {0.25 + 0.03 * (polls % 9)}',
        f'vllm:prompt_tokens_total{{engine="0"}} {110.0 * polls}',
        f'vllm:generation_tokens_total{{engine="0"}} {float(generated)}',
        *(f'vllm:time_to_first_token_seconds_bucket{{engine="0",le="{le}"}} {n}' for le, n in ttft),
        *(f'vllm:inter_token_latency_seconds_bucket{{engine="0",le="{le}"}} {n}' for le, n in itl),
    ]
    return "\n".join(lines) + "\n"


def serve(app: Starlette) -> tuple[str, Callable[[], None]]:
    """Runs the app on a free port in a thread. Returns its URL and a function that stops it."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline and thread.is_alive(), "the test's server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]

    def stop() -> None:
        server.should_exit = True
        thread.join(10)

    return f"http://127.0.0.1:{port}", stop
