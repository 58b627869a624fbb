"""What crosses the socket between the HTTP process and a worker: msgpack, by msgspec. Tokens or pixels, no files."""

from __future__ import annotations

import msgspec

from slipstream.api.engine import EngineInfo, EngineRequest, EngineStats, TokenOutput
from slipstream.api.image_engine import ImageEngineInfo, ImageEngineStats, ImageOutput, ImageRequest


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Take these requests."""

    requests: list[EngineRequest]


class SubmitImages(msgspec.Struct, frozen=True, tag="submit_images"):
    """Make these pictures."""

    requests: list[ImageRequest]


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Drop these requests; what they hold is free within one step. Outputs under way may still come for them."""

    ids: list[str]


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Finish nothing more and exit."""


ToWorker = Submit | SubmitImages | Abort | Shutdown


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


class ImagesReady(msgspec.Struct, frozen=True, tag="images_ready"):
    """The worker takes requests for pictures from now on."""

    incarnation: int
    info: ImageEngineInfo


class Outputs(msgspec.Struct, frozen=True, tag="outputs"):
    """Tokens of one step, and now and then (`stats` set) the engine's statistics: also the worker's heartbeat."""

    incarnation: int
    outputs: list[TokenOutput]
    stats: EngineStats | None = None


class ImageOutputs(msgspec.Struct, frozen=True, tag="image_outputs"):
    """The same of a worker that makes pictures."""

    incarnation: int
    outputs: list[ImageOutput]
    stats: ImageEngineStats | None = None


class Fatal(msgspec.Struct, frozen=True, tag="fatal"):
    """The worker cannot start or go on; `error` is what a person should read. `kind`: the exception's class name."""

    incarnation: int
    kind: str
    error: str


AnyReady = Ready | ImagesReady
AnyOutputs = Outputs | ImageOutputs
FromWorker = Progress | AnyReady | AnyOutputs | Fatal
