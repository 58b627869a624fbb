"""A model behind the HTTP application: what `serve` listens with and `generate` calls in its own process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from slipstream.checkpoint import Progress, open_checkpoint, resolve
from slipstream.cluster.process import EarlyWorker
from slipstream.cluster.worker_client import WorkerClient
from slipstream.engine.config import EngineConfig
from slipstream.server.config import ServerConfig
from slipstream.spec.source import GenerationDefaults
from slipstream.text import Tokenizer

if TYPE_CHECKING:
    from starlette.applications import Starlette

DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True)
class Opened:
    """A model that is on this machine: its client (not started), its text side, and the settings with its name."""

    client: WorkerClient
    tokenizer: Tokenizer | None
    generation: GenerationDefaults
    server: ServerConfig


def open_model(
    model: str | None,
    engine: EngineConfig,
    server: ServerConfig,
    progress: Progress,
    early: EarlyWorker | None = None,
) -> Opened:
    """Find `model` (None: the default one), fetching it if need be, and open what the HTTP process needs of it.

    `early`: a worker process that was started before and is to run it.

    Raises ModelNotFound, CheckpointError and ConfigError.
    """
    from slipstream.server.serve import tokenizer_for

    name = model or DEFAULT_MODEL
    path = resolve(name, progress=progress)
    checkpoint = open_checkpoint(path)
    return Opened(
        client=WorkerClient(path, engine, on_progress=progress, log_format=worker_log_format(server), early=early),
        tokenizer=tokenizer_for(checkpoint.tokenizer, server),
        generation=checkpoint.generation,
        server=replace(server, served_model_name=server.served_model_name or public_name(name)),
    )


def worker_log_format(server: ServerConfig) -> Literal["text", "json"]:
    """The form of the worker's log lines, which go to this process's standard error: the same as our own."""
    if server.log_format == "auto":
        return "text" if sys.stderr.isatty() else "json"
    return server.log_format


def public_name(model: str) -> str:
    """What a model is called in the API: the name that it was asked for under, or of its folder or file."""
    path = Path(model).expanduser()
    if path.exists():
        return path.stem if path.suffix.lower() == ".gguf" else path.resolve().name
    return model.removeprefix("hf:").partition("@")[0]


@asynccontextmanager
async def application(
    model: str | None, engine: EngineConfig, server: ServerConfig, progress: Progress
) -> AsyncIterator[Starlette]:
    """The ASGI application with its engine running, without a socket. Raises what keeps the engine from starting."""
    from slipstream.server.app import build_app

    opened = open_model(model, engine, server, progress)
    started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_start(error: BaseException | None) -> None:
        if error is None:
            started.set_result(None)
        else:
            started.set_exception(error)

    app = build_app(opened.client, opened.tokenizer, opened.generation, opened.server, on_start=on_start)
    async with app.router.lifespan_context(app):
        await started
        yield app
