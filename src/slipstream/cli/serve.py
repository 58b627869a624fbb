"""`slipstream serve`: a model over OpenAI's HTTP API. This process speaks HTTP; a worker process runs the engine."""

from __future__ import annotations

import contextlib
import time
from typing import Annotated

from cyclopts import Parameter

from slipstream.api.engine import EngineInfo
from slipstream.cli.banner import Banner, Prompting
from slipstream.cli.progress import StageBars
from slipstream.cluster.config import ENGINE_MODULES
from slipstream.cluster.process import EarlyWorker
from slipstream.engine.config import EngineConfig
from slipstream.server.config import ServerConfig, api_keys
from slipstream.text import Tokenizer


def serve(
    model: str | None = None,
    /,
    *,
    server: Annotated[ServerConfig, Parameter(name="*")] = ServerConfig(),
    engine: Annotated[EngineConfig, Parameter(name="*")] = EngineConfig(),
) -> None:
    """Serve a model over OpenAI's HTTP API.

    Parameters
    ----------
    model
        A built-in name (slipstream models lists them), a folder or GGUF file, or org/name on Hugging Face;
        smollm2-135m if none is named.
    """
    begun = time.monotonic()
    # It loads JAX while this process loads the server and opens the model.
    with EarlyWorker(ENGINE_MODULES) as early:
        _serve(model, server, engine, early, begun)


def _serve(model: str | None, server: ServerConfig, engine: EngineConfig, early: EarlyWorker, begun: float) -> None:
    from slipstream import __version__
    from slipstream.cli.serving import open_model
    from slipstream.server.serve import bind, run

    # A port that is taken is found before anything is fetched, not after.
    bind(server).close()
    with contextlib.ExitStack() as shown:
        bars = shown.enter_context(StageBars())
        opened = open_model(model, engine, server, bars, early)

        def on_ready(url: str) -> None:
            shown.close()
            Banner(
                version=__version__,
                model=opened.server.served_model_name or "",
                url=url,
                info=opened.client.info,
                prompting=prompting(opened.tokenizer, opened.client.info),
                needs_key=bool(api_keys(server)),
                seconds=time.monotonic() - begun,
            ).show()

        run(opened.server, opened.client, opened.tokenizer, opened.generation, on_ready=on_ready)


def prompting(tokenizer: Tokenizer | None, info: EngineInfo) -> Prompting:
    """What a model with this tokenizer can be asked with."""
    if info.pooling is not None:
        return Prompting(info.pooling.task)
    if tokenizer is None:
        return Prompting.TOKENS
    return Prompting.CHAT if tokenizer.has_chat_template else Prompting.TEXT
