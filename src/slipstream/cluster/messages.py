"""What crosses the socket between the HTTP process and a worker: msgpack, by msgspec. Tokens only, never text."""

from __future__ import annotations

import msgspec

from slipstream.api.engine import EngineInfo, EngineRequest, EngineStats, TokenOutput


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Take these requests."""

    requests: list[EngineRequest]


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Drop these requests; their pages are free within one step. Outputs under way may still come for them."""

    ids: list[str]


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Finish nothing more and exit."""


ToWorker = Submit | Abort | Shutdown


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """A starting worker's state, for progress bars: `done` of `total` (None: not known) in `stage` (load, compile)."""

    incarnation: int
    stage: str
    done: int
    total: int | None


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The worker takes requests from now on."""

    incarnation: int
    info: EngineInfo


class Outputs(msgspec.Struct, frozen=True, tag="outputs"):
    """Tokens of one step, and now and then (`stats` set) the engine's statistics: also the worker's heartbeat."""

    incarnation: int
    outputs: list[TokenOutput]
    stats: EngineStats | None = None


class Fatal(msgspec.Struct, frozen=True, tag="fatal"):
    """The worker cannot start or go on; `error` is what a person should read. `kind`: the exception's class name."""

    incarnation: int
    kind: str
    error: str


FromWorker = Progress | Ready | Outputs | Fatal
