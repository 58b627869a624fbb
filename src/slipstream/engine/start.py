"""An engine for a checkpoint: one that generates, or one that makes vectors of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from slipstream.checkpoint.progress import Progress, silent
from slipstream.engine.build import build
from slipstream.engine.build_pooling import build_pooling
from slipstream.engine.config import EngineConfig
from slipstream.engine.loop import Engine
from slipstream.engine.replicas import Replicas
from slipstream.errors import ConfigError
from slipstream.models.registry import encoder, is_headless
from slipstream.spec.source import Checkpoint

Task = Literal["generate", "pooling"]

BUILDERS: Mapping[Task, Callable[[Checkpoint, EngineConfig, Progress], Engine | Replicas]] = {
    "generate": build,
    "pooling": build_pooling,
}


def start(checkpoint: Checkpoint, config: EngineConfig, progress: Progress = silent) -> Engine | Replicas:
    """An engine that can take requests. `progress` gets the stages "load" (weights) and "compile" (shapes).

    Raises UnsupportedModel, CheckpointError, ConfigError or OutOfMemory, before anything large is read where possible.
    """
    return BUILDERS[task_of(checkpoint, config)](checkpoint, config, progress)


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
