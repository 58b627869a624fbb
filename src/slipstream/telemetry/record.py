"""The record of one request to an engine, from which its log line, metrics and span are all made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Operation = Literal["chat", "text_completion", "embeddings", "rerank", "score", "classify"]
ImageOperation = Literal["image_generation", "image_edit"]


@dataclass(frozen=True)
class GenerationRecord:
    """What happened to one request. Times are seconds of the monotonic clock; `started_ns` is the wall clock's.

    `operation` and the sampling values are named as OpenTelemetry's gen_ai conventions name them. `prompt_tokens` has
    one entry for each prompt. `output_tokens`, `finish_reasons` and `decode_seconds` have one for each choice, the n
    of the first prompt first; the last is the time from a choice's first token to its last (None: no token), as
    `queue_seconds` and `prefill_seconds` are those before its first step and from there to its first token. `error`: an
    error's code, None when all choices finished.
    """

    operation: Operation
    request_id: str
    response_id: str
    model: str
    arrival: float
    started_ns: int
    end: float
    stream: bool
    n: int
    max_tokens: int | None
    sampling: dict[str, float | int] = field(default_factory=dict)
    prompt_tokens: tuple[int, ...] = ()
    output_tokens: tuple[int, ...] = ()
    cached_tokens: int = 0
    first_token: float | None = None
    queue_seconds: tuple[float | None, ...] = ()
    prefill_seconds: tuple[float | None, ...] = ()
    decode_seconds: tuple[float | None, ...] = ()
    finish_reasons: tuple[str, ...] = ()
    error: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None

    @property
    def seconds(self) -> float:
        """From arrival to the end of the last choice."""
        return self.end - self.arrival

    @property
    def time_to_first_token(self) -> float | None:
        """From arrival to the first token of any choice; None if there was none."""
        return None if self.first_token is None else self.first_token - self.arrival


@dataclass(frozen=True)
class ImageRecord:
    """What happened to one request for images. Names that `GenerationRecord` has mean the same here.

    `queue_seconds`, `steps_done` and `finish_reasons` have one entry for each image; `steps` is what was asked for.
    """

    operation: ImageOperation
    request_id: str
    response_id: str
    model: str
    arrival: float
    started_ns: int
    end: float
    stream: bool
    width: int
    height: int
    steps: int
    sampling: dict[str, float | int] = field(default_factory=dict)
    queue_seconds: tuple[float | None, ...] = ()
    steps_done: tuple[int, ...] = ()
    finish_reasons: tuple[str, ...] = ()
    error: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None

    @property
    def n(self) -> int:
        """Images asked for."""
        return len(self.finish_reasons)

    @property
    def seconds(self) -> float:
        """From arrival to the end of the last image."""
        return self.end - self.arrival
