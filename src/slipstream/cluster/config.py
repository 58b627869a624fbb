"""What a worker process is told when it starts, and when it is started again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from slipstream.cluster.messages import TransferKind
from slipstream.diffusion.config import ImageEngineConfig
from slipstream.engine.config import EngineConfig
from slipstream.errors import ConfigError

ENGINE_FACTORY = "slipstream.cluster.worker:build_engine"
"""The engine that a worker builds: "module:function", called with (WorkerConfig, report)."""

ENGINE_MODULES = ("slipstream.checkpoint", "slipstream.engine.start")
"""What that engine needs and a worker may load before it knows its model."""

IMAGE_ENGINE_FACTORY = "slipstream.cluster.worker:build_image_engine"
"""The same of a worker that makes pictures."""

IMAGE_ENGINE_MODULES = ("slipstream.checkpoint", "slipstream.diffusion.start")
"""What that engine needs."""

Role = Literal["both", "prefill", "decode"]
"""Which part of a request a worker computes."""


class Report(Protocol):
    """Called while an engine is built. A plain function with these parameters is a `Report`."""

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """`done` of `total` (None while it is not known) in `stage`, such as "load" or "compile"."""


class GroupConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The group of processes that a worker is: `size` members, one model on the devices of all of them.

    `rank`: which member is started here, 0 leads; None: all of them, on this machine. `plans`: where the leader listens
    for its followers, tcp://HOST:PORT or unix:PATH; empty where all are started here. `secret`: what all members know,
    needed where other machines reach `plans`. `patience`: seconds that members wait for one another at the start.
    """

    size: int
    rank: int | None = None
    plans: str = ""
    secret: str = ""
    patience: float = 600.0


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's whole configuration: one line of JSON on its standard input, which then stays open.

    `model`: a folder or file, or a name that is found on the worker's host. `engine`, `images`: the settings of the
    engine that it is, the other None. `endpoint`: where the parent's ROUTER listens. `identity`: the routing id to
    connect with, a secret of the two processes; a message from any other peer is dropped. `incarnation`: 1 for the
    first start, one more at each restart; every message carries it.
    `role`: what it is sent, and so what it must be able to do: `prefill` offers KV pages, `decode` fetches them.
    `transfer`: how they move; None: they do not. `transfer_endpoint`: where to listen for who fetches them,
    tcp://HOST:PORT (port 0: a free one) or unix:PATH; None: a unix socket in a private folder. `secret`: known to all
    workers that move pages among them, and needed to listen beyond this machine.
    `processors`: those that it may run on; None: its parent's. `neighbours`: workers of one server on this machine,
    itself among them: they divide its memory where that is the devices' memory too. `parent_secret`: what both ends of
    a socket between hosts must know; None: `endpoint` is one of this host. `group`: None for a worker of one process.
    """

    model: str
    engine: EngineConfig | None = None
    images: ImageEngineConfig | None = None
    endpoint: str
    identity: str
    incarnation: int
    parent_pid: int
    role: Role = "both"
    transfer: TransferKind | None = None
    transfer_endpoint: str | None = None
    secret: str | None = None
    processors: tuple[int, ...] | None = None
    neighbours: int = 1
    parent_secret: str | None = None
    group: GroupConfig | None = None
    log_format: Literal["text", "json"] = "text"
    log_level: str = "info"
    engine_factory: str = ENGINE_FACTORY


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """One worker of a fleet. `engine`: its own settings; `processors`: those that it may run on, None: all.

    `group`: the processes that it is, None: one. Raises ConfigError for a group that cannot work.
    """

    engine: EngineConfig | ImageEngineConfig
    role: Role = "both"
    processors: tuple[int, ...] | None = None
    group: GroupConfig | None = None

    def __post_init__(self) -> None:
        """Check the group."""
        if self.group is None:
            return
        size, rank = self.group.size, self.group.rank
        if isinstance(self.engine, ImageEngineConfig):
            raise ConfigError("an image model runs in one process: leave --nnodes out")
        if self.role != "both":
            raise ConfigError(f"a worker of {size} processes moves no KV pages yet: it cannot be --role {self.role}")
        if size < 2 or (rank is not None and not 0 <= rank < size):
            raise ConfigError(f"--nnodes {size} --node-rank {rank}: ranks go from 0 to one less than --nnodes")


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
