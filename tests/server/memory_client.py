"""An engine in memory: says what a script tells it to, when it tells it to, and remembers how each request ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from slipstream.api.engine import EngineInfo, EngineRequest, EngineStats, TokenLogprobs, TokenOutput
from slipstream.cluster.client import WorkerState

INFO = EngineInfo(
    model="toy",
    vocab_size=300,
    max_model_len=512,
    max_seqs=8,
    max_batched_tokens=64,
    page_size=16,
    num_pages=100,
    kv_bytes=1 << 20,
    weight_bytes=1 << 20,
    temporary_bytes=1 << 20,
    dtype="float32",
    kv_dtype="float32",
    platform="cpu",
    device="toy",
    num_devices=1,
    compile_seconds=0.0,
    num_shapes=1,
)


@dataclass
class MemoryClient:
    """`reply(request)` gives the tokens of a request; a reply that runs out ends with the request's first stop token.

    `delay`: seconds before each output. `burst`: tokens of an output. `fail_at`: the token before which the engine
    gives up, with `failure` as the exception or, if None, as an output with an error. `gate`: an event that must be
    set before each output.
    """

    reply: Callable[[EngineRequest], Sequence[int]]
    info: EngineInfo = INFO
    delay: float = 0.0
    burst: int = 1
    fail_at: int | None = None
    error: Exception | None = None
    cached: int = 0
    stats: EngineStats = field(default_factory=EngineStats)
    ready: bool = True
    failure: str | None = None
    restarts: int = 0
    gate: asyncio.Event | None = None
    started: bool = False
    closed: bool = False
    requests: list[EngineRequest] = field(default_factory=list)
    ends: dict[str, str] = field(default_factory=dict)

    async def start(self) -> None:
        self.started = True

    @property
    def workers(self) -> list[WorkerState]:
        return []

    async def drain(self, index: int, timeout: float) -> int:
        raise AssertionError("there is no worker")

    async def reload(self, model: str | None, timeout: float, index: int | None = None) -> int:
        raise AssertionError("there is no worker")

    async def close(self) -> None:
        self.closed = True

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenOutput, None]:
        self.requests.append(request)
        self.ends[request.id] = "running"
        try:
            async for output in self._outputs(request):
                if output.finish_reason is not None:
                    self.ends[request.id] = "finished"
                yield output
        finally:
            if self.ends[request.id] == "running":
                self.ends[request.id] = "closed"

    async def _outputs(self, request: EngineRequest) -> AsyncGenerator[TokenOutput, None]:
        sampling = request.sampling
        tokens, reason, stop = self._ending(request)
        for at in range(0, len(tokens), self.burst):
            if self.gate is not None:
                await self.gate.wait()
            await asyncio.sleep(self.delay)
            if self.fail_at is not None and at >= self.fail_at:
                if self.error is not None:
                    raise self.error
                yield TokenOutput(id=request.id, token_ids=[], finish_reason="error", error="the engine is broken")
                return
            part = tokens[at : at + self.burst]
            last = at + len(part) == len(tokens)
            scored = sampling.prompt_logprobs is not None and at == 0
            yield TokenOutput(
                id=request.id,
                token_ids=part,
                logprobs=None if sampling.logprobs is None else [scores(t, sampling.logprobs) for t in part],
                prompt_logprobs=(
                    [scores(t, sampling.prompt_logprobs or 0) for t in request.prompt_token_ids[1:]] if scored else None
                ),
                cached_tokens=self.cached if at == 0 else None,
                queue_seconds=0.25 if at == 0 else None,
                prefill_seconds=0.5 if at == 0 else None,
                finish_reason=reason if last else None,
                stop_reason=stop if last else None,
            )

    def _ending(self, request: EngineRequest) -> tuple[list[int], str, int | None]:
        sampling = request.sampling
        tokens = list(self.reply(request)) + list(sampling.stop_token_ids[:1])
        for i, token in enumerate(tokens):
            if token in sampling.stop_token_ids and i >= sampling.min_tokens:
                if i < sampling.max_tokens:
                    return tokens[: i + 1], "stop", token
                break
        filled = tokens + tokens[-1:] * sampling.max_tokens
        return filled[: sampling.max_tokens], "length", None


def scores(token: int, top: int) -> TokenLogprobs:
    """Log probabilities that tell their token: -token / 100; the alternatives are the tokens after it."""
    return TokenLogprobs(
        token, -token / 100, 1, [token + i for i in range(top)], [-token / 100 - i for i in range(top)]
    )
