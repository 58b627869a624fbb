"""What every endpoint works with: the engine's client, the tokenizer, the settings, and who is let in."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from slipstream.cluster.client import EngineClient
from slipstream.errors import NotFound, RequestError, Unavailable
from slipstream.server.admission import Admission, draining
from slipstream.server.config import ServerConfig
from slipstream.server.metrics import Metrics
from slipstream.spec.source import GenerationDefaults
from slipstream.telemetry.record import GenerationRecord
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
    """The server's state. `started` is set once the engine is ready for the first time; `model` is known from then on.

    Encoding and template rendering run in `pool`: they take milliseconds a long prompt, and streams must not wait.
    """

    client: EngineClient
    tokenizer: Tokenizer | None
    generation: GenerationDefaults
    config: ServerConfig
    admission: Admission
    metrics: Metrics
    tracing: Tracing | None
    created: int = field(default_factory=lambda: int(time.time()))
    started: bool = False
    closed: bool = False
    model: str = ""
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, thread_name_prefix="text"))

    def open(self) -> None:
        """Take requests: the engine is ready."""
        self.model = self.config.served_model_name or self.client.info.model
        self.metrics.describe(self.client.info, self.model)
        self.started = True

    def follow(self) -> None:
        """Take the engine's newest statistics into the metrics."""
        if self.started:
            self.metrics.follow(self.client.stats, ready=self.ready, restarts=self.client.restarts)

    async def close(self) -> None:
        """Stop the engine, once."""
        if not self.closed:
            self.closed = True
            await self.client.close()

    @property
    def ready(self) -> bool:
        """Whether a load balancer should send requests here."""
        return self.started and self.client.ready and not self.admission.draining

    def check_open(self) -> None:
        """Raises Unavailable while the engine loads and while the server drains."""
        if self.admission.draining:
            raise draining()
        if not self.started:
            raise Unavailable("the model is still loading: retry when /ready answers 200", code="starting")

    def check_model(self, name: str | None) -> None:
        """Raises NotFound for a model that is not served; None is the served one."""
        if name is not None and name != self.model:
            raise NotFound(
                f"the model {name[:200]!r} is not served here; {self.model!r} is", param="model", code="model_not_found"
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
