"""Slipstream's engine in this process."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from slipstream.api.engine import EngineRequest
from slipstream.api.sampling import TokenSampling
from slipstream.checkpoint import open_checkpoint, resolve
from slipstream.engine.build import build
from slipstream.engine.config import EngineConfig

from .protocol import Clock, Prompts


class Slipstream:
    """`settings`: model (a name or a file), cpu_precision. The native pool takes the threads that it is allowed."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.versions = {name: version(name) for name in ("slipstream", "jax")}
        config = EngineConfig(cpu_precision=settings["cpu_precision"])
        self._engine = build(open_checkpoint(resolve(settings["model"])), config)
        self._requests = 0

    def generate(self, prompts: Prompts, clock: Clock) -> None:
        """See protocol.Participant."""
        sampling = TokenSampling(temperature=0, max_tokens=clock.tokens)
        numbers = {}
        for index, prompt in enumerate(prompts):
            self._requests += 1
            numbers[str(self._requests)] = index
            self._engine.add(EngineRequest(id=str(self._requests), prompt_token_ids=prompt, sampling=sampling))
        while self._engine.has_work:
            for output in self._engine.step():
                if output.error:
                    raise RuntimeError(output.error)
                clock.came(numbers[output.id], len(output.token_ids))


load = Slipstream
