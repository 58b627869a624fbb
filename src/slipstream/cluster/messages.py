"""What crosses the socket between the HTTP process and a worker: msgpack, by msgspec. Tokens or pixels, no files."""

from __future__ import annotations

import secrets
from typing import Literal

import msgspec

from slipstream.api.engine import EngineInfo, EngineRequest, EngineStats, TokenOutput
from slipstream.api.image_engine import ImageEngineInfo, ImageEngineStats, ImageOutput, ImageRequest

TransferKind = Literal["socket", "jax"]
"""How KV pages move between workers."""

TICKET_SECONDS = 30.0


def new_ticket_id() -> str:
    """A ticket's name, which cannot be guessed."""
    return secrets.token_hex(16)


class TransferInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Where a worker offers KV pages, and who may fetch them: a worker with the same three last fields.

    `endpoint`: of its control connection (unix:PATH or tcp://HOST:PORT), for `Ticket.endpoint`. `secret_needed`: it
    listens beyond this machine, and a peer must have the same `WorkerConfig.secret`; any two peers must agree on it.
    `model`: a fingerprint of the weights and their types. `layout`: a digest of what a page holds (tokens, layers,
    heads, types), the same for any number of devices and any kernels. `version`: Slipstream's.
    """

    endpoint: str
    kind: TransferKind
    secret_needed: bool
    model: str
    layout: str
    version: str

    def fits(self, other: TransferInfo) -> bool:
        """Whether pages of one can be read by the other."""
        return all(getattr(self, name) == getattr(other, name) for name in ("kind", "model", "layout", "version"))


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt's KV pages, to be fetched once. `id`: 32 hexadecimal digits, random (`new_ticket_id`).

    `endpoint`, `kind`: of the worker that computes them. `deadline_seconds`: counted by each side from when it reads
    the message, on its own monotonic clock; what has not arrived by then is computed again.
    """

    id: str
    endpoint: str
    kind: TransferKind
    deadline_seconds: float = TICKET_SECONDS


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Take these requests. `tickets`: request id -> ticket id, of a `Fetch` sent before.

    A request with a ticket waits until its pages have come or failed to. A ticket that this worker does not have makes
    no difference.
    """

    requests: list[EngineRequest]
    tickets: dict[str, str] = {}


class Prefill(msgspec.Struct, frozen=True, tag="prefill"):
    """Take these requests up to their next token, and offer the pages of their full blocks under `tickets`, one each.

    Outputs are those of any request, but the first token's is the last: `TokenOutput.handed` is set unless the token
    ended the request. The pages can be had for `deadline_seconds`.
    """

    requests: list[EngineRequest]
    tickets: list[str]
    deadline_seconds: float = TICKET_SECONDS


class Fetch(msgspec.Struct, frozen=True, tag="fetch"):
    """Pull what the prefix cache lacks of these prompts (token ids, one list a ticket), for a `Submit` to come."""

    tickets: list[Ticket]
    prompts: list[list[int]]


class Drop(msgspec.Struct, frozen=True, tag="drop"):
    """Nobody needs these tickets any more: what they hold is let go. Unknown ones make no difference."""

    tickets: list[str]


class SubmitImages(msgspec.Struct, frozen=True, tag="submit_images"):
    """Make these pictures."""

    requests: list[ImageRequest]


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Drop these requests; what they hold is free within one step. Outputs under way may still come for them."""

    ids: list[str]


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Finish nothing more and exit."""


ToWorker = Submit | SubmitImages | Prefill | Fetch | Drop | Abort | Shutdown


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """A starting worker's state, for progress bars: `done` of `total` (None: not known) in `stage` (load, compile)."""

    incarnation: int
    stage: str
    done: int
    total: int | None


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The worker takes requests from now on. `transfer`: None where it neither offers nor fetches KV pages."""

    incarnation: int
    info: EngineInfo
    transfer: TransferInfo | None = None


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
