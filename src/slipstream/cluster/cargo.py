"""What workers of texts and workers of images do not share: what their messages carry, and how a request's end is kept.

`WorkerClient` is written once; a `Cargo` says which requests it takes and what it gives for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from slipstream.api.engine import EngineInfo, EngineRequest, EngineStats, TokenOutput, joined
from slipstream.api.image_engine import ImageEngineInfo, ImageEngineStats, ImageOutput, ImageRequest
from slipstream.cluster.config import ENGINE_FACTORY, IMAGE_ENGINE_FACTORY
from slipstream.cluster.image_stream import ImageStream
from slipstream.cluster.messages import Submit, SubmitImages
from slipstream.cluster.stream import Stream
from slipstream.errors import RequestError


class Named(Protocol):
    """A request has a name."""

    @property
    def id(self) -> str:
        """It comes back in outputs."""


class Ending(Named, Protocol):
    """An output has the name of its request, and says whether it is the last."""

    @property
    def finish_reason(self) -> str | None:
        """None for all but the last."""


Request = TypeVar("Request", bound=Named)
Given = TypeVar("Given", bound=Named, covariant=True)
Output = TypeVar("Output", bound=Ending)
Info = TypeVar("Info")
Stats = TypeVar("Stats", bound=msgspec.Struct)


class InFlight(Protocol[Given, Output]):
    """A request and its outputs between the socket and its reader. `stream.Stream` says what the names mean."""

    finished: bool
    fruitless: int

    @property
    def advanced(self) -> bool:
        """Whether it got something since it was last submitted."""

    @property
    def text(self) -> list[int]:
        """The tokens that a worker's prefix cache would know it by."""

    def submit(self, wire_id: str) -> Given:
        """The request, under that id, for a worker to go on with."""

    def orphan(self) -> None:
        """Note that the worker that held it died."""

    def push(self, output: Output) -> None:
        """Add a step's output."""

    def fail(self, error: RequestError) -> None:
        """End with an error."""

    async def take(self) -> Output:
        """All that came since the last call; waits until there is something. Raises what `fail` was given."""


@dataclass(frozen=True)
class Cargo(Generic[Request, Output, Info, Stats]):
    """One kind of request with all that belongs to it.

    `counters`: the fields of `idle`'s type that only grow; the rest describe the moment, or the steps since the last
    report. `room`: tokens that the engine's prefix cache holds, and tokens that its memory has room for right now, None
    where nothing is told. `joined`: several workers' infos as one. `factory`: the engine that a worker builds.
    """

    stream: Callable[[Request], InFlight[Request, Output]]
    submit: Callable[[list[Request]], Submit | SubmitImages]
    info: type[Info]
    joined: Callable[[Sequence[Info]], Info]
    room: Callable[[Info, Stats], tuple[int, int | None]]
    idle: Stats
    counters: tuple[str, ...]
    factory: str


def _room(info: EngineInfo, stats: EngineStats) -> tuple[int, int | None]:
    held = info.num_pages * info.page_size if info.prefix_caching else 0
    return held, (stats.pages_total - stats.pages_used) * info.page_size if stats.pages_total else None


def _joined_images(infos: Sequence[ImageEngineInfo]) -> ImageEngineInfo:
    return replace(
        infos[0],
        slots=sum(info.slots for info in infos),
        num_devices=sum(info.num_devices for info in infos),
        compile_seconds=max(info.compile_seconds for info in infos),
    )


TOKENS: Cargo[EngineRequest, TokenOutput, EngineInfo, EngineStats] = Cargo(
    stream=Stream,
    submit=Submit,
    info=EngineInfo,
    joined=joined,
    room=_room,
    idle=EngineStats(),
    counters=(
        "prefix_queries",
        "prefix_hits",
        "preemptions",
        "prompt_tokens",
        "generation_tokens",
        "steps",
        "padded_tokens",
        "scheduled_tokens",
        "compiles",
        "compiles_after_ready",
        "transfer",
    ),
    factory=ENGINE_FACTORY,
)

IMAGES: Cargo[ImageRequest, ImageOutput, ImageEngineInfo, ImageEngineStats] = Cargo(
    stream=ImageStream,
    submit=SubmitImages,
    info=ImageEngineInfo,
    joined=_joined_images,
    room=lambda info, stats: (0, None),
    idle=ImageEngineStats(),
    counters=(
        "images",
        "steps",
        "scheduled_slots",
        "padded_slots",
        "text_queries",
        "text_hits",
        "compiles",
        "compiles_after_ready",
    ),
    factory=IMAGE_ENGINE_FACTORY,
)
