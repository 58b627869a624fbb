"""Several engines as one: replicas of a model on devices of their own, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from itertools import chain
from operator import add

import msgspec

from slipstream.api.engine import EngineInfo, EngineRequest, EngineStats, TokenOutput, joined
from slipstream.engine.loop import Engine
from slipstream.routing import Memory, choose, digests

_OF_ALL = ("compiles", "compiles_after_ready")
"""Statistics of the process: each replica gives those of all."""


class Replicas:
    """What one engine is to its callers. A request stays with the replica that `routing.choose` picked when it came.

    All replicas start a step before the results of any are waited for, so their devices work at the same time. Not
    thread safe, as `Engine`.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        """Join engines that are ready, of one model and with one `CompileCounter`."""
        self._engines = tuple(engines)
        self._owners: dict[str, Engine] = {}
        infos = [engine.info for engine in engines]
        # What was sent there, not what is in its cache by now: requests of one beginning that come together stay so.
        self._memories = tuple(Memory(info.num_pages * info.page_size if info.prefix_caching else 0) for info in infos)
        self.info: EngineInfo = joined(infos)

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return any(engine.has_work for engine in self._engines)

    def add(self, request: EngineRequest) -> None:
        """Queue a request. Raises RequestError for one that cannot be served."""
        owner = self._owners.get(request.id)
        if owner is None:
            owner = self._choose([*request.prompt_token_ids, *request.output_token_ids])
        owner.add(request)
        self._owners[request.id] = owner

    def _choose(self, tokens: list[int]) -> Engine:
        blocks = digests(tokens)
        candidates = [
            replace(engine.load, cached_tokens=memory.match(blocks))
            for engine, memory in zip(self._engines, self._memories, strict=True)
        ]
        index = choose(candidates, len(tokens))
        self._memories[index].add(blocks)
        return self._engines[index]

    def abort(self, request_id: str) -> bool:
        """Drop a request; its pages are free at once. False if it is not here (any more)."""
        owner = self._owners.pop(request_id, None)
        return owner is not None and owner.abort(request_id)

    def step(self) -> list[TokenOutput]:
        """Start the next step of every replica, then wait for the ones before; empty when there is no work."""
        for engine in self._engines:
            engine.start()
        outputs = list(chain.from_iterable(engine.finish() for engine in self._engines))
        for output in outputs:
            if output.finish_reason is not None:
                self._owners.pop(output.id, None)
        return outputs

    def stats(self) -> EngineStats:
        """Gauges and counters as of now, of all replicas; step times since the last call."""
        each = [engine.stats() for engine in self._engines]
        own = (name for name in EngineStats.__struct_fields__ if name not in _OF_ALL)
        return msgspec.structs.replace(
            each[0], **{name: reduce(add, (getattr(stats, name) for stats in each)) for name in own}
        )
