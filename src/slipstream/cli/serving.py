"""Models behind the HTTP application: what `serve` listens with and `generate` calls in its own process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from slipstream.checkpoint import Progress, open_checkpoint, resolve
from slipstream.checkpoint.image_folder import is_image_folder
from slipstream.checkpoint.progress import silent
from slipstream.cluster.cargo import IMAGES, TOKENS
from slipstream.cluster.client import EngineClient, ImageClient
from slipstream.cluster.config import RestartPolicy, WorkerSpec
from slipstream.cluster.launch import Launcher
from slipstream.cluster.process import EarlyWorker
from slipstream.cluster.worker_client import WorkerClient
from slipstream.diffusion.config import ImageEngineConfig
from slipstream.engine.config import EngineConfig
from slipstream.errors import ConfigError
from slipstream.server.config import ServerConfig
from slipstream.spec.source import Checkpoint, GenerationDefaults
from slipstream.text import Tokenizer

if TYPE_CHECKING:
    from starlette.applications import Starlette

DEFAULT_MODEL = "smollm2-135m"

IMAGE_POLICY = RestartPolicy(hang_timeout=900.0)
"""A denoising step of a large picture takes a CPU minutes; a language model's steps are never so long."""


@dataclass(frozen=True)
class Opened:
    """Models on this machine: their clients (not started), the text side, and the settings with their names.

    `locate`: finds other weights for the same text side, by a model's name.
    """

    client: EngineClient | None
    tokenizer: Tokenizer | None
    generation: GenerationDefaults
    server: ServerConfig
    images: ImageClient | None = None
    locate: Callable[[str], Path] | None = None


def open_models(
    model: str | None,
    image_model: str | None,
    workers: Sequence[WorkerSpec],
    image: ImageEngineConfig,
    server: ServerConfig,
    progress: Progress,
    early: Sequence[EarlyWorker] = (),
    image_early: EarlyWorker | None = None,
    threshold: int | None = None,
    launcher: Launcher | None = None,
) -> Opened:
    """Find the models, fetching them if need be, and open what the HTTP process needs of them.

    `model`: a language model or an image model; None: the default one. `image_model`: one beside it. `workers`: those
    of the language model; `threshold`, `launcher`: see `WorkerClient`. `early`, `image_early`: worker processes that
    were started before and are to run them.

    Raises ModelNotFound, CheckpointError and ConfigError.
    """
    name = model or DEFAULT_MODEL
    path = resolve(name, progress=progress)
    if not is_image_folder(path):
        opened = _open_text(name, path, workers, server, progress, early, threshold, launcher)
        if image_model is None:
            return opened
        return _with_images(opened, image_model, resolve(image_model, progress=progress), image, progress, image_early)
    if image_model is not None:
        raise ConfigError(f"{name} is an image model: name a language model first, or leave --image-model out")
    alone = Opened(client=None, tokenizer=None, generation=GenerationDefaults(), server=server)
    if len(workers) > 1:
        raise ConfigError(
            f"{name} is an image model, which one worker runs: leave --workers, --prefill and --decode out"
        )
    if launcher is not None:
        raise ConfigError(f"{name} is an image model, which runs on this machine: leave --launcher out")
    return _with_images(alone, name, path, image, progress, early[0] if early else None)


def open_model(model: str | None, engine: EngineConfig, server: ServerConfig, progress: Progress) -> Opened:
    """The same of a language model alone."""
    name = model or DEFAULT_MODEL
    return _open_text(name, resolve(name, progress=progress), [WorkerSpec(engine=engine)], server, progress)


def _open_text(
    name: str,
    path: Path,
    workers: Sequence[WorkerSpec],
    server: ServerConfig,
    progress: Progress,
    early: Sequence[EarlyWorker] = (),
    threshold: int | None = None,
    launcher: Launcher | None = None,
) -> Opened:
    from slipstream.server.serve import tokenizer_for

    checkpoint = open_checkpoint(path)
    return Opened(
        client=WorkerClient(
            TOKENS,
            # On another machine a model lies elsewhere: its name is found there.
            path if launcher is None or Path(name).expanduser().exists() else name,
            workers,
            threshold=threshold,
            launcher=launcher,
            on_progress=progress,
            log_format=worker_log_format(server),
            early=early,
        ),
        tokenizer=tokenizer_for(checkpoint.tokenizer, server),
        generation=checkpoint.generation,
        server=replace(server, served_model_name=server.served_model_name or public_name(name)),
        locate=partial(_locate, text_side(checkpoint)),
    )


def _locate(text: TextSide, name: str) -> Path:
    """The folder of a model, fetched if need be. Raises ConfigError for one of another text side."""
    path = resolve(name, progress=silent)
    if is_image_folder(path) or text_side(open_checkpoint(path)) != text:
        raise ConfigError(
            f"{name} has another tokenizer, chat template or end of text than the model that is served: "
            "start a server of its own for it"
        )
    return path


TextSide = tuple[object, ...]


def text_side(checkpoint: Checkpoint) -> TextSide:
    """What the HTTP process took from a checkpoint, all that requests rest on, to be compared with another's."""
    spec = checkpoint.tokenizer
    if spec is None:
        return (None, None, checkpoint.generation.eos_token_ids)
    file = None if spec.tokenizer_json is None else sha256(spec.tokenizer_json.read_bytes()).digest()
    return (replace(spec, tokenizer_json=None), file, checkpoint.generation.eos_token_ids)


def _with_images(
    opened: Opened, name: str, path: Path, image: ImageEngineConfig, progress: Progress, early: EarlyWorker | None
) -> Opened:
    if not is_image_folder(path):
        raise ConfigError(
            f"--image-model {name} makes no images: it must be a folder in diffusers' layout, with a model_index.json"
        )

    def on_progress(stage: str, done: int, total: int | None) -> None:
        progress(f"{stage} (images)" if opened.client is not None else stage, done, total)

    server = opened.server
    client = WorkerClient(
        IMAGES,
        path,
        image,
        policy=IMAGE_POLICY,
        on_progress=on_progress,
        log_format=worker_log_format(server),
        early=early,
    )
    public = server.served_image_model_name or public_name(name)
    return replace(opened, images=client, server=replace(server, served_image_model_name=public))


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
