"""`slipstream serve`: a model over OpenAI's HTTP API. This process speaks HTTP; a worker process runs each engine."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from slipstream.api.engine import EngineInfo
from slipstream.cli.banner import Banner, Prompting
from slipstream.cli.progress import StageBars
from slipstream.cluster.config import ENGINE_MODULES, IMAGE_ENGINE_MODULES
from slipstream.cluster.process import EarlyWorker
from slipstream.diffusion.config import ImageEngineConfig
from slipstream.engine.config import EngineConfig
from slipstream.server.config import ServerConfig, api_keys
from slipstream.text import Tokenizer

if TYPE_CHECKING:
    from slipstream.cli.serving import Opened


def serve(
    model: str | None = None,
    /,
    *,
    image_model: str | None = None,
    server: Annotated[ServerConfig, Parameter(name="*")] = ServerConfig(),
    engine: Annotated[EngineConfig, Parameter(name="*")] = EngineConfig(),
    image: ImageEngineConfig = ImageEngineConfig(),
) -> None:
    """Serve a model over OpenAI's HTTP API.

    Parameters
    ----------
    model
        A built-in name (slipstream models lists them), a folder or GGUF file, or org/name on Hugging Face;
        smollm2-135m if none is named. An image model makes images alone.
    image_model
        An image model to serve beside a language model: a folder in diffusers' layout, or org/name on
        Hugging Face.
    """
    begun = time.monotonic()
    # They load JAX while this process loads the server and opens the models.
    with (
        EarlyWorker(ENGINE_MODULES) as early,
        EarlyWorker(IMAGE_ENGINE_MODULES) if image_model is not None else contextlib.nullcontext() as image_early,
    ):
        _serve((model, image_model), server, engine, image, (early, image_early), begun)


def _serve(
    models: tuple[str | None, str | None],
    server: ServerConfig,
    engine: EngineConfig,
    image: ImageEngineConfig,
    early: tuple[EarlyWorker, EarlyWorker | None],
    begun: float,
) -> None:
    from slipstream.cli.serving import open_models
    from slipstream.server.serve import bind, run

    # A port that is taken is found before anything is fetched, not after.
    bind(server).close()
    with contextlib.ExitStack() as shown:
        bars = shown.enter_context(StageBars())
        opened = open_models(*models, engine, image, server, bars, *early)

        def on_ready(url: str) -> None:
            shown.close()
            banner_of(opened, url, time.monotonic() - begun).show()

        run(opened.server, opened.client, opened.tokenizer, opened.generation, images=opened.images, on_ready=on_ready)


def banner_of(opened: Opened, url: str, seconds: float) -> Banner:
    """What is told once all are ready, `seconds` after the command."""
    from slipstream import __version__

    server, images = opened.server, opened.images
    needs_key = bool(api_keys(server))
    image_name = server.served_image_model_name or ""
    if opened.client is None:
        assert images is not None
        return Banner(__version__, image_name, url, images.info, Prompting.IMAGE, needs_key, seconds)
    info = opened.client.info
    how = prompting(opened.tokenizer, info)
    beside = None if images is None else (image_name, images.info)
    return Banner(__version__, server.served_model_name or "", url, info, how, needs_key, seconds, beside)


def prompting(tokenizer: Tokenizer | None, info: EngineInfo) -> Prompting:
    """What a model with this tokenizer can be asked with."""
    if info.pooling is not None:
        return Prompting(info.pooling.task)
    if tokenizer is None:
        return Prompting.TOKENS
    return Prompting.CHAT if tokenizer.has_chat_template else Prompting.TEXT
