"""A real server on a real socket, in a thread of the test's process, over an engine in memory."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from slipstream.server import ServerConfig, build_app
from slipstream.server.front import Front
from slipstream.server.serve import Server, bind, url_of
from slipstream.server.wire import Wire
from slipstream.spec.source import GenerationDefaults

from .image_client import ImageMemory
from .memory_client import MemoryClient
from .toys import EOS_ID, TOKENIZER, ids


@dataclass
class Live:
    """A running server."""

    url: str
    client: MemoryClient
    front: Front
    server: Server
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    images: ImageMemory | None = None
    openai_clients: list[openai.OpenAI] = field(default_factory=list)

    def call(self, function: Callable[[], Any]) -> Any:
        """Run a function in the server's loop."""

        async def run() -> Any:
            result = function()
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(20)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds in the server."""

        async def wait() -> None:
            async with asyncio.timeout(20):
                while not condition():
                    await asyncio.sleep(0.002)

        asyncio.run_coroutine_threadsafe(wait(), self.loop).result(25)

    def openai(self, **options: Any) -> openai.OpenAI:
        key = options.pop("api_key", "none")
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)
        self.openai_clients.append(client)
        return client

    def post(self, path: str, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=20, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=20, **options)

    def stop(self) -> None:
        for client in self.openai_clients:
            client.close()
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


Start = Callable[..., Live]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers: `start(reply, config={...}, **MemoryClient's fields)`; `text=False`: images alone."""
    running: list[Live] = []

    def begin(
        reply: str | Callable[..., Any] = "Hello, world",
        *,
        config: dict[str, Any] | None = None,
        tokenizer: Any = TOKENIZER,
        generation: GenerationDefaults | None = None,
        client: Any = None,
        images: ImageMemory | None = None,
        text: bool = True,
        tracing: Any = None,
        wait: bool = True,
        send_buffer: int | None = None,
        **fields: Any,
    ) -> Live:
        said = (lambda _: ids(reply)) if isinstance(reply, str) else reply
        client = client or MemoryClient(said, **fields)
        settings = ServerConfig(port=0, **(config or {}))
        generation = generation or GenerationDefaults(eos_token_ids=(EOS_ID,))
        app = build_app(client if text else None, tokenizer, generation, settings, images=images, tracing=tracing)
        listener = bind(settings)
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)  # its connections inherit it
        url = url_of(listener)
        server = Server(uvicorn.Config(app, http=Wire, lifespan="on", log_config=None, timeout_graceful_shutdown=5))
        loops: list[asyncio.AbstractEventLoop] = []
        begun = threading.Event()

        async def main() -> None:
            loops.append(asyncio.get_running_loop())
            begun.set()
            await server.serve(sockets=[listener])

        def body() -> None:
            with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
                runner.run(main())

        thread = threading.Thread(target=body)
        thread.start()
        assert begun.wait(20)
        live = Live(url, client, app.state.front, server, loops[0], thread, images)
        running.append(live)
        if wait:
            live.until(lambda: live.front.started)
        return live

    yield begin
    for live in running:
        live.stop()
