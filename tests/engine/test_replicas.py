"""Which replica of `--dp` gets a request; that they answer alike is tests/parallel's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from slipstream.api.engine import EngineRequest, TokenOutput
from slipstream.api.sampling import TokenSampling
from slipstream.engine.loop import Engine
from slipstream.engine.replicas import Replicas
from slipstream.routing import Candidate
from tests.engine.drive import plan, scheduler, sequence
from tests.server.memory_client import INFO


@dataclass
class Held:
    """As much of an engine as the choice sees: what it holds ends when a test says so."""

    info: Any = INFO
    requests: list[EngineRequest] = field(default_factory=list)

    @property
    def load(self) -> Candidate:
        return Candidate(sequences=len(self.requests))

    def add(self, request: EngineRequest) -> None:
        self.requests.append(request)

    def start(self) -> None:
        pass

    def finish(self) -> list[TokenOutput]:
        ended, self.requests = self.requests, []
        return [TokenOutput(id=request.id, token_ids=[1], finish_reason="length") for request in ended]


def requests(*prompts: list[int]) -> list[EngineRequest]:
    sampling = TokenSampling(max_tokens=1)
    return [EngineRequest(id=str(i), prompt_token_ids=p, sampling=sampling) for i, p in enumerate(prompts)]


def test_small_prompts_spread_and_long_beginnings_stay_together() -> None:
    engines = [Held(), Held()]
    replicas = Replicas(cast(list[Engine], engines))
    system = list(range(200))
    for request in requests([1], [2], [*system, 1], [*system, 2], [3]):
        replicas.add(request)
    assert [[r.id for r in engine.requests] for engine in engines] == [["0", "2", "3"], ["1", "4"]]
    assert {output.id for output in replicas.step()} == {"0", "1", "2", "3", "4"}
    # Both are idle: what was sent where decides, and for another beginning the first.
    for request in requests([*system, 9], [5]):
        replicas.add(request)
    assert [[r.id for r in engine.requests] for engine in engines] == [["0"], ["1"]]


def test_tokens_that_wait_are_those_of_prompts() -> None:
    engine = scheduler(budget=8)
    engine.add(sequence("a", 20))
    engine.add(sequence("b", 6))
    assert engine.queued_tokens == 26
    plan(engine)
    assert engine.queued_tokens == 12 + 6
    plan(engine)
    plan(engine)
    assert engine.queued_tokens in (0, 2)
