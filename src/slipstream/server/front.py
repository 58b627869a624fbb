"""What every endpoint works with: the engine's client, the tokenizer, the settings, and who is let in."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from slipstream.cluster.client import EngineClient, ImageClient
from slipstream.errors import ConfigError, NotFound, RequestError, Unavailable
from slipstream.server.admission import Admission, draining
from slipstream.server.config import ServerConfig
from slipstream.server.image_front import ImageFront
from slipstream.server.metrics import Metrics
from slipstream.spec.source import GenerationDefaults
from slipstream.telemetry.record import GenerationRecord, ImageRecord
from slipstream.telemetry.tracing import Tracing
from slipstream.text import Tokenizer

log = logging.getLogger("slipstream.server")
Result = TypeVar("Result")
Task = Literal["generate", "embed", "score", "classify"]

_TASKS: Mapping[Task, str] = {
    "generate": "generates text: use /v1/chat/completions or /v1/completions; served with --runner pooling it makes "
    "vectors",
    "embed": "makes vectors of texts and generates nothing: use /v1/embeddings, /v1/rerank or /v1/score",
    "score": "scores pairs of texts, and makes neither text nor vectors of one: use /v1/rerank or /v1/score",
    "classify": "tells texts by its labels, and makes neither text nor vectors: use /v1/classify",
}


@dataclass
class Front:
    """The server's state. `started` is set once all engines have been ready; `model` is known from then on.

    `text`: the engine of the language model, and `images` all that belongs to an image model; one of them may be None.

    `locate`: the folder of a model to change to, by its name; it raises SlipstreamError for one that this server could
    not serve. `leave`: begin to drain within so many seconds, and end. None where whoever runs the server has neither.

    Encoding and template rendering run in `pool`: they take milliseconds a long prompt, and streams must not wait.
    """

    text: EngineClient | None
    tokenizer: Tokenizer | None
    generation: GenerationDefaults
    config: ServerConfig
    admission: Admission
    metrics: Metrics
    tracing: Tracing | None
    images: ImageFront | None = None
    locate: Callable[[str], Path] | None = None
    leave: Callable[[float], None] | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    started: bool = False
    closed: bool = False
    model: str = ""
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, thread_name_prefix="text"))

    @property
    def client(self) -> EngineClient:
        """The language model's engine. Raises RequestError where there is none."""
        if self.text is None:
            raise self._images_only()
        return self.text

    @property
    def engines(self) -> list[EngineClient | ImageClient]:
        """All engines."""
        engines: list[EngineClient | ImageClient] = [] if self.text is None else [self.text]
        return engines if self.images is None else [*engines, self.images.client]

    async def start(self) -> None:
        """Start the engines, side by side. Raises what keeps the first of them from starting."""
        try:
            async with asyncio.TaskGroup() as group:
                for engine in self.engines:
                    group.create_task(engine.start())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        self.open()

    def open(self) -> None:
        """Take requests: the engines are ready."""
        if self.text is not None:
            self.model = self.config.served_model_name or self.text.info.model
            self.metrics.describe(self.text.info, self.model)
        if self.images is not None:
            self.images.open(self.metrics.families)
            if self.images.model == self.model:
                raise ConfigError(f"both models are called {self.model!r}: name one with --served-image-model-name")
        self.started = True

    def follow(self) -> None:
        """Take the engines' newest statistics into the metrics."""
        if self.started and self.text is not None:
            ready = self.text.ready and not self.draining
            self.metrics.follow(self.text.stats, ready=ready, restarts=self.text.restarts)
        if self.started and self.images is not None:
            self.images.follow(ready=self.images.client.ready and not self.draining)

    async def close(self) -> None:
        """Stop the engines, once."""
        if not self.closed:
            self.closed = True
            for engine in self.engines:
                await engine.close()
            self.pool.shutdown(wait=False, cancel_futures=True)
            if self.images is not None:
                self.images.close()

    @property
    def ready(self) -> bool:
        """Whether a load balancer should send requests here."""
        return self.started and all(engine.ready for engine in self.engines) and not self.draining

    @property
    def failure(self) -> str | None:
        """Why an engine is lost for good; None while all is well or will be."""
        return next((engine.failure for engine in self.engines if engine.failure is not None), None)

    @property
    def admissions(self) -> tuple[Admission, ...]:
        """Who gets in, to each engine."""
        return (self.admission,) if self.images is None else (self.admission, self.images.admission)

    @property
    def draining(self) -> bool:
        """Whether the server is about to stop."""
        return self.admission.draining

    async def drain(self, timeout: float) -> bool:
        """Take nothing new, and wait until all have finished, at most `timeout` seconds. Says whether they have."""
        return all(await asyncio.gather(*(admission.drain(timeout) for admission in self.admissions)))

    def cancel_all(self) -> int:
        """Cancel all admitted requests; gives their number."""
        return sum(admission.cancel_all() for admission in self.admissions)

    def check_open(self) -> None:
        """Raises Unavailable while the engine loads and while the server drains."""
        if self.draining:
            raise draining()
        if not self.started:
            raise Unavailable("the model is still loading: retry when /ready answers 200", code="starting")

    def check_model(self, name: str | None) -> None:
        """Raises NotFound for a name of no model, RequestError for an image model's. None is the language model's."""
        makes_images = self.images is not None and name == self.images.model
        if makes_images or (name is None and self.text is None):
            raise self._images_only()
        if name is not None and name != self.model:
            raise self.unknown_model(name)

    def unknown_model(self, name: str) -> NotFound:
        """The error of a name that no model has here."""
        served = " and ".join(repr(one) for one in self.models)
        return NotFound(
            f"the model {name[:200]!r} is not served here; {served} {'is' if len(self.models) == 1 else 'are'}",
            param="model",
            code="model_not_found",
        )

    @property
    def models(self) -> list[str]:
        """The names of the models."""
        return [*([] if self.text is None else [self.model]), *([] if self.images is None else [self.images.model])]

    def need_images(self) -> ImageFront:
        """The image side. Raises RequestError where no image model is served."""
        if self.images is None:
            raise RequestError(
                "this server makes no images: start it with --image-model, or with an image model alone",
                param="model",
                code="wrong_task",
            )
        return self.images

    def _images_only(self) -> RequestError:
        assert self.images is not None
        return RequestError(
            f"{self.images.model!r} makes images and no text: use /v1/images/generations or /v1/images/edits",
            param="model",
            code="wrong_task",
        )

    @property
    def task(self) -> Task:
        """What the engine does."""
        pooling = self.client.info.pooling
        return "generate" if pooling is None else pooling.task

    def check_task(self, *wanted: Task) -> None:
        """Raises RequestError where the engine does something else than what is asked for."""
        if self.task not in wanted:
            raise RequestError(f"{self.model!r} {_TASKS[self.task]}", param="model", code="wrong_task")

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, computed beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)

    def report_images(self, record: ImageRecord) -> None:
        """The same of a request for images."""
        if self.images is not None:
            self.images.report(record)
        if self.tracing is not None:
            self.tracing.write(record)

    def report(self, record: GenerationRecord) -> None:
        """Tell the log, the metrics and the tracing of a request that has ended."""
        self.metrics.observe(record)
        if self.tracing is not None:
            self.tracing.write(record)
        ttft = record.time_to_first_token
        log.info(
            "generation",
            extra={
                "operation": record.operation,
                "response_id": record.response_id,
                "prompt_tokens": sum(record.prompt_tokens),
                "cached_tokens": record.cached_tokens,
                "output_tokens": sum(record.output_tokens),
                "ttft_ms": None if ttft is None else round(ttft * 1e3, 1),
                "e2e_ms": round(record.seconds * 1e3, 1),
                "finish_reasons": ",".join(record.finish_reasons) or None,
                "error": record.error,
            },
        )


def new_id(prefix: str) -> str:
    """An id for a response. Engine ids derive from it: a client's own request id may repeat, and these must not."""
    return f"{prefix}-{secrets.token_hex(12)}"
