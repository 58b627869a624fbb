"""An engine in memory that makes vectors of token ids, and remembers how each request ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import numpy as np
from msgspec.structs import replace

from slipstream.api.engine import EngineInfo, EngineRequest, EngineStats, PoolingInfo, TokenOutput

from .memory_client import INFO

SIZE = 6
EMBED = replace(INFO, pooling=PoolingInfo(task="embed", size=SIZE, dimensions=(2, 4)))
SCORE = replace(INFO, pooling=PoolingInfo(task="score", size=1))
CLASSIFY = replace(INFO, pooling=PoolingInfo(task="classify", size=SIZE, labels=tuple("abcdef")))


def vector_of(ids: list[int]) -> np.ndarray:
    """What the engine makes of a text: how often each remainder by SIZE comes, and a little of the order."""
    counts = np.bincount(np.asarray(ids) % SIZE, minlength=SIZE).astype("<f4")
    counts[0] += ids[0] / 1000
    return counts


@dataclass
class VectorClient:
    """`gate`: an event that must be set before each output. `broken`: the engine gives up on texts that have this id.

    A scorer's vector is where the second text begins, and then the last token's share.
    """

    info: EngineInfo = EMBED
    gate: asyncio.Event | None = None
    broken: int | None = None
    stats: EngineStats = field(default_factory=EngineStats)
    ready: bool = True
    failure: str | None = None
    restarts: int = 0
    requests: list[EngineRequest] = field(default_factory=list)
    running: int = 0
    most: int = 0

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenOutput, None]:
        self.requests.append(request)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0)
            if self.gate is not None:
                await self.gate.wait()
            ids = request.prompt_token_ids
            if self.broken in ids:
                yield TokenOutput(id=request.id, token_ids=[], finish_reason="error", error="the engine is broken")
                return
            vector = vector_of(ids)
            if self.info.pooling is not None and self.info.pooling.task == "score":
                vector = np.asarray([(request.second_from or 0) + ids[-1] / 1000], "<f4")
            yield TokenOutput(id=request.id, token_ids=[], finish_reason="stop", pooled=vector.tobytes())
        finally:
            self.running -= 1
