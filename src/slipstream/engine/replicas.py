"""Several engines as one: replicas of a model on devices of their own, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import chain
from operator import add

import msgspec

from slipstream.api.engine import EngineInfo, EngineRequest, EngineStats, TokenOutput
from slipstream.engine.loop import Engine

_OF_ALL = ("compiles", "compiles_after_ready")
"""Statistics of the process: each replica gives those of all."""


class Replicas:
    """What one engine is to its callers. A request stays with the replica that had the fewest when it came.

    All replicas start a step before the results of any are waited for, so their devices work at the same time. Not
    thread safe, as `Engine`.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        """Join engines that are ready, of one model and with one `CompileCounter`."""
        self._engines = tuple(engines)
        self._owners: dict[str, Engine] = {}
        infos = [engine.info for engine in engines]
        self.info: EngineInfo = msgspec.structs.replace(
            infos[0],
            max_model_len=min(info.max_model_len for info in infos),
            max_seqs=sum(info.max_seqs for info in infos),
            num_pages=sum(info.num_pages for info in infos),
            num_devices=sum(info.num_devices for info in infos),
            compile_seconds=sum(info.compile_seconds for info in infos),
        )

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return any(engine.has_work for engine in self._engines)

    def add(self, request: EngineRequest) -> None:
        """Queue a request. Raises RequestError for one that cannot be served."""
        owner = self._owners.get(request.id) or min(self._engines, key=lambda engine: engine.load)
        owner.add(request)
        self._owners[request.id] = owner

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
