"""`slipstream serve`: a model over OpenAI's HTTP API. This process speaks HTTP; a worker process runs each engine."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from slipstream.api.engine import EngineInfo
from slipstream.cli.banner import Banner, Prompting
from slipstream.cli.progress import StageBars
from slipstream.cluster.config import (
    ENGINE_MODULES,
    IMAGE_ENGINE_MODULES,
    GroupConfig,
    RestartPolicy,
    WorkerConfig,
    WorkerSpec,
)
from slipstream.cluster.fleet import FleetConfig, specs
from slipstream.cluster.hosts import HostsConfig, group_of
from slipstream.cluster.launch_config import LaunchConfig
from slipstream.cluster.process import EarlyWorker
from slipstream.diffusion.config import ImageEngineConfig
from slipstream.engine.config import EngineConfig
from slipstream.errors import ConfigError
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
    fleet: Annotated[FleetConfig, Parameter(name="*")] = FleetConfig(),
    launch: Annotated[LaunchConfig, Parameter(name="*")] = LaunchConfig(),
    hosts: Annotated[HostsConfig, Parameter(name="*")] = HostsConfig(),
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
    group = group_of(hosts)
    if group is not None and group.rank:
        follow(model, server, engine, group)
        return
    if group is not None and group.rank == 0 and fleet.count > 1:
        raise ConfigError("--node-rank is for a server of one worker: leave --workers, --prefill and --decode out")
    if group is not None and launch.launcher != "local":
        raise ConfigError(f"--launcher {launch.launcher} starts workers of one process: leave --nnodes out")
    # They load JAX while this process loads the server and opens the models.
    with contextlib.ExitStack() as stack:
        early = [
            stack.enter_context(EarlyWorker(ENGINE_MODULES)) for _ in range(fleet.count * (launch.launcher == "local"))
        ]
        image_early = None if image_model is None else stack.enter_context(EarlyWorker(IMAGE_ENGINE_MODULES))
        workers = [replace(spec, group=group) for spec in specs(fleet, engine, here=launch.launcher == "local")]
        _serve((model, image_model), server, workers, fleet, launch, image, (early, image_early), begun)


def follow(model: str | None, server: ServerConfig, engine: EngineConfig, group: GroupConfig) -> None:
    """Be a member of a group that another machine leads, until told to stop. Raises what keeps it from that."""
    with EarlyWorker(ENGINE_MODULES) as early:
        from slipstream.checkpoint import resolve
        from slipstream.cli.serving import DEFAULT_MODEL, worker_log_format
        from slipstream.cluster.follower import keep_following

        with StageBars() as bars:
            path = resolve(model or DEFAULT_MODEL, progress=bars)
        config = WorkerConfig(
            model=str(path),
            engine=engine,
            endpoint="",
            identity="",
            incarnation=0,
            parent_pid=os.getpid(),
            group=group,
            log_format=worker_log_format(server),
            log_level=server.log_level,
        )
        keep_following(config, RestartPolicy(), early)


def _serve(
    models: tuple[str | None, str | None],
    server: ServerConfig,
    workers: list[WorkerSpec],
    fleet: FleetConfig,
    launch: LaunchConfig,
    image: ImageEngineConfig,
    early: tuple[list[EarlyWorker], EarlyWorker | None],
    begun: float,
) -> None:
    from slipstream.cli.serving import open_models
    from slipstream.cluster.launchers import launcher_of
    from slipstream.server.serve import bind, run

    # A port that is taken is found before anything is fetched, not after.
    bind(server).close()
    with contextlib.ExitStack() as shown:
        bars = shown.enter_context(StageBars())
        opened = open_models(*models, workers, image, server, bars, *early, fleet.disagg_threshold, launcher_of(launch))

        def on_ready(url: str) -> None:
            shown.close()
            banner_of(opened, url, time.monotonic() - begun).show()

        run(
            opened.server,
            opened.client,
            opened.tokenizer,
            opened.generation,
            images=opened.images,
            locate=opened.locate,
            on_ready=on_ready,
        )


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
    workers = tuple(opened.client.workers)
    return Banner(__version__, server.served_model_name or "", url, info, how, needs_key, seconds, beside, workers)


def prompting(tokenizer: Tokenizer | None, info: EngineInfo) -> Prompting:
    """What a model with this tokenizer can be asked with."""
    if info.pooling is not None:
        return Prompting(info.pooling.task)
    if tokenizer is None:
        return Prompting.TOKENS
    return Prompting.CHAT if tokenizer.has_chat_template else Prompting.TEXT
