"""The application: its routes, what wraps them, and its life from the engine's start to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from slipstream import __version__
from slipstream.api.openai import ChatRequest, CompletionRequest
from slipstream.api.pooling import ClassifyRequest, EmbeddingRequest, RerankRequest, ScoreRequest
from slipstream.cluster.client import EngineClient, ImageClient
from slipstream.errors import ConfigError
from slipstream.server import chat, classify, completions, embeddings, rerank
from slipstream.server.admin import AdminEndpoints, check_admin
from slipstream.server.admission import Admission
from slipstream.server.config import ServerConfig, api_keys
from slipstream.server.docs import docs_page, openapi
from slipstream.server.front import Front, Task
from slipstream.server.generate import Generate
from slipstream.server.image_files import PATH, ImageFiles
from slipstream.server.image_front import ImageFront
from slipstream.server.images import Images, image_file, read_edit, read_generation
from slipstream.server.metrics import Metrics
from slipstream.server.middleware import Envelope, Errors, Guard, http_exception
from slipstream.server.page import STATIC, page
from slipstream.server.pooling import Pool
from slipstream.server.status import StatusEndpoints
from slipstream.server.tokens import TokenEndpoints
from slipstream.spec.source import GenerationDefaults
from slipstream.telemetry.tracing import Tracing, open_tracing
from slipstream.text import Tokenizer

_STATS_EVERY = 0.1

log = logging.getLogger("slipstream.server")


def build_app(
    client: EngineClient | None,
    tokenizer: Tokenizer | None,
    generation: GenerationDefaults,
    config: ServerConfig,
    *,
    images: ImageClient | None = None,
    tracing: Tracing | None = None,
    locate: Callable[[str], Path] | None = None,
    on_start: Callable[[BaseException | None], None] | None = None,
) -> Starlette:
    """The ASGI application. Its lifespan starts and closes the engines; while they load, requests get 503.

    `client`: the language model's engine, `images`: the image model's; at least one of them.

    `generation`: the checkpoint's end-of-text tokens and suggested sampling values. `tracing`: in place of the one
    that `config.otel_endpoint` names. `locate`: see `Front`. `on_start` is called once, when the engine is ready (None)
    or cannot start. Raises ConfigError for settings that cannot work. `app.state.front` is the server's state.
    """
    if client is None and images is None:
        raise ConfigError("nothing to serve: neither a language model nor an image model")
    front = Front(
        text=client,
        tokenizer=tokenizer,
        generation=generation,
        config=config,
        admission=Admission(config.max_queue),
        metrics=Metrics(),
        tracing=tracing if tracing is not None else open_tracing(config.otel_endpoint, version=__version__),
        images=None if images is None else image_front(images, config),
        locate=locate,
    )
    check_admin(config)
    admin = AdminEndpoints(front)
    status = StatusEndpoints(front)
    tokens = TokenEndpoints(front)
    chat_endpoint = Generate(front, "chat", ChatRequest, chat.count, chat.prepare)
    completion_endpoint = Generate(front, "text_completion", CompletionRequest, completions.count, completions.prepare)
    embed = Pool(front, "embeddings", EmbeddingRequest, ("embed",), embeddings.count, embeddings.prepare)
    scores: tuple[Task, ...] = ("embed", "score")
    rank = Pool(front, "rerank", RerankRequest, scores, rerank.count_documents, rerank.prepare_rerank)
    score = Pool(front, "score", ScoreRequest, scores, rerank.count_pairs, rerank.prepare_score)
    label = Pool(front, "classify", ClassifyRequest, ("classify",), embeddings.count, classify.prepare)
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat_endpoint, methods=["POST"]),
            Route("/v1/completions", completion_endpoint, methods=["POST"]),
            Route("/v1/embeddings", embed, methods=["POST"]),
            *(Route(f"{at}/rerank", rank, methods=["POST"]) for at in ("/v1", "/v2", "")),
            *(Route(f"{at}/score", score, methods=["POST"]) for at in ("/v1", "")),
            *(Route(f"{at}/classify", label, methods=["POST"]) for at in ("/v1", "")),
            Route("/v1/images/generations", Images(front, "image_generation", read_generation), methods=["POST"]),
            Route("/v1/images/edits", Images(front, "image_edit", read_edit), methods=["POST"]),
            Route("/v1/models", status.models),
            Route("/v1/models/{id:path}", status.model),
            Route("/tokenize", tokens.tokenize, methods=["POST"]),
            Route("/detokenize", tokens.detokenize, methods=["POST"]),
            Route("/health", status.health),
            Route("/ready", status.ready),
            Route("/metrics", status.metrics),
            Route("/version", status.version),
            *(
                [
                    Route("/admin/workers", admin.workers),
                    Route("/admin/drain", admin.drain, methods=["POST"]),
                    Route("/admin/reload", admin.reload, methods=["POST"]),
                ]
                if config.admin
                else []
            ),
            Route("/openapi.json", openapi),
            Route("/docs", docs_page),
            Route(PATH + "{name}", image_file(front)),
            Route("/", page),
            Mount("/static", StaticFiles(directory=STATIC, check_dir=False)),
        ],
        middleware=[
            Middleware(Envelope),
            Middleware(
                CORSMiddleware,
                allow_origins=list(config.cors_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["X-Request-Id", "Retry-After"],
            ),
            Middleware(Errors),
            Middleware(Guard, keys=api_keys(config), origins=config.cors_origins),
        ],
        exception_handlers={HTTPException: http_exception},
        lifespan=lambda _: _lifespan(front, on_start),
    )
    app.state.front = front
    return app


def image_front(client: ImageClient, config: ServerConfig) -> ImageFront:
    """The image side of the server's state."""
    return ImageFront(
        client=client,
        config=config,
        admission=Admission(config.max_image_queue),
        files=ImageFiles(config.image_files_bytes, config.image_files_seconds),
    )


@asynccontextmanager
async def _lifespan(front: Front, on_start: Callable[[BaseException | None], None] | None) -> AsyncIterator[None]:
    """Start the engines beside the server, follow its statistics, and close everything at the end."""

    async def start() -> None:
        try:
            await front.start()
        except Exception as error:
            if on_start is None:
                log.exception("an engine could not start")
            else:
                on_start(error)
            return
        if on_start is not None:
            on_start(None)
        while True:
            front.follow()
            await asyncio.sleep(_STATS_EVERY)

    life = asyncio.create_task(start())
    try:
        yield
    finally:
        life.cancel()
        with suppress(asyncio.CancelledError):
            await life
        await front.close()
        if front.tracing is not None:
            await asyncio.to_thread(front.tracing.close)
