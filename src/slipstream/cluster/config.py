"""What a worker process is told when it starts, and when it is started again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from slipstream.diffusion.config import ImageEngineConfig
from slipstream.engine.config import EngineConfig

ENGINE_FACTORY = "slipstream.cluster.worker:build_engine"
"""The engine that a worker builds: "module:function", called with (WorkerConfig, report)."""

ENGINE_MODULES = ("slipstream.checkpoint", "slipstream.engine.start")
"""What that engine needs and a worker may load before it knows its model."""

IMAGE_ENGINE_FACTORY = "slipstream.cluster.worker:build_image_engine"
"""The same of a worker that makes pictures."""

IMAGE_ENGINE_MODULES = ("slipstream.checkpoint", "slipstream.diffusion.start")
"""What that engine needs."""


class Report(Protocol):
    """Called while an engine is built. A plain function with these parameters is a `Report`."""

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """`done` of `total` (None while it is not known) in `stage`, such as "load" or "compile"."""


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's whole configuration: one line of JSON on its standard input, which then stays open.

    `model`: a local folder or file (names are resolved by the parent). `engine`, `images`: the settings of the engine
    that it is, the other None. `endpoint`: where the parent's ROUTER listens. `identity`: the routing id to connect
    with, a secret of the two processes; a message from any other peer is dropped. `incarnation`: 1 for the first start,
    one more at each restart; every message carries it.
    """

    model: str
    engine: EngineConfig | None = None
    images: ImageEngineConfig | None = None
    endpoint: str
    identity: str
    incarnation: int
    parent_pid: int
    log_format: Literal["text", "json"] = "text"
    log_level: str = "info"
    engine_factory: str = ENGINE_FACTORY


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """When a dead worker is started again, and when that is given up.

    Parameters
    ----------
    delays
        Seconds to wait before the first, second, ... restart in a row; the last one repeats.
    max_restarts
        Restarts in a row after which the next death is final.
    settle_seconds
        A worker that was ready for this long ends the row: the next death counts as the first.
    suspect_after
        Deaths in a row that a request may be part of without getting a token. Then it may be what kills the worker: it
        is replayed while no other suspect runs, until it gets one.
    max_fruitless
        The same, after which it fails: the other requests should not go down with it.
    hang_timeout
        Seconds without a sign of life, while requests are running, after which a worker is killed. A step sends one.
    shutdown_timeout
        Seconds that a worker has to exit when told to, before it is killed.
    """

    delays: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
    max_restarts: int = 8
    settle_seconds: float = 60.0
    suspect_after: int = 2
    max_fruitless: int = 3
    hang_timeout: float = 120.0
    shutdown_timeout: float = 5.0

    def delay(self, strikes: int) -> float:
        """Seconds to wait after the `strikes`-th death in a row (from 1)."""
        return self.delays[min(strikes, len(self.delays)) - 1]
