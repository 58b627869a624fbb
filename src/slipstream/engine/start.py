"""An engine for a checkpoint: one that generates, or one that makes vectors of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

from slipstream.checkpoint.progress import Progress, silent
from slipstream.engine.build import build
from slipstream.engine.build import follow as build_follower
from slipstream.engine.build_pooling import build_pooling
from slipstream.engine.config import EngineConfig
from slipstream.engine.group import ALONE, Group
from slipstream.engine.loop import Engine
from slipstream.engine.replicas import Replicas
from slipstream.errors import ConfigError
from slipstream.hardware.proxy import is_proxied, reach_proxy
from slipstream.models.registry import encoder, is_headless
from slipstream.spec.source import Checkpoint

Task = Literal["generate", "pooling"]

BUILDERS: Mapping[Task, Callable[[Checkpoint, EngineConfig, Progress], Engine | Replicas]] = {
    "generate": build,
    "pooling": build_pooling,
}


def start(
    checkpoint: Checkpoint,
    config: EngineConfig,
    progress: Progress = silent,
    group: Group = ALONE,
    *,
    exchanges: bool = False,
) -> Engine | Replicas:
    """An engine that can take requests. `progress` gets the stages "load" (weights) and "compile" (shapes).

    `group`: the processes whose devices it is on; this one leads them.
    `exchanges`: see `build`; an engine that pools has no pages to exchange.

    Raises UnsupportedModel, CheckpointError, ConfigError or OutOfMemory, before anything large is read where possible.
    """
    if is_proxied():
        reach_proxy()
        # Pathways compiles where its devices are, and gives no compiled program that could be kept here.
        config = replace(config, compile_cache="")
    task = task_of(checkpoint, config)
    if exchanges and task == "pooling":
        raise ConfigError("an engine that makes vectors keeps no KV pages: leave the roles of workers out")
    if group.size == 1 and not exchanges:
        return BUILDERS[task](checkpoint, config, progress)
    _only_generates(checkpoint, config)
    return build(checkpoint, config, progress, group, exchanges=exchanges)


def follow(checkpoint: Checkpoint, config: EngineConfig, group: Group) -> None:
    """Run what the engine of the group's leader runs, until the group ends. Raises the errors of `start`."""
    _only_generates(checkpoint, config)
    build_follower(checkpoint, config, group)


def _only_generates(checkpoint: Checkpoint, config: EngineConfig) -> None:
    if task_of(checkpoint, config) != "generate":
        raise ConfigError(
            f"{checkpoint.path.name} makes vectors, which runs in one process: leave --nnodes out, and --tp to the "
            "devices of one machine"
        )


def task_of(checkpoint: Checkpoint, config: EngineConfig) -> Task:
    """What the engine will do. Raises ConfigError for one that cannot generate and is asked to."""
    only_pools = encoder(checkpoint.config) is not None or is_headless(checkpoint.config)
    if config.runner == "generate" and only_pools:
        raise ConfigError(
            f"{checkpoint.path.name} has no language model's head, it generates nothing: leave --runner out"
        )
    if config.answers is not None and (config.runner == "generate" or only_pools):
        raise ConfigError("--answers is for a language model that scores: leave --runner out, or --answers")
    if config.runner == "auto":
        pools = only_pools or checkpoint.pooling is not None or config.answers is not None
        return "pooling" if pools else "generate"
    return config.runner
