"""A sequence's life in the engine, and the plan of one step. Plain Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from slipstream.api.engine import EngineRequest


class Status(Enum):
    """Where a sequence is."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Sequence:
    """The mutable state of one request. `scheduler.py` and `loop.py` alone change it.

    `tokens`: prompt and known output tokens. `computed`: tokens whose KV is written, or will be once the steps in
    flight have run; may be one past the known tokens, because the loop schedules a decode before the host has read the
    token that it continues. `pages`: page ids in order. `slot`: row of the per-sequence device state while running.
    `epoch` grows with each preemption, so that results of steps planned before it are dropped (recomputing samples the
    same tokens again). `order`: its place among all that were added. `hashes`: digests of the full blocks of `tokens`;
    the first `registered` of them were offered to the prefix cache. `cached_tokens`: prompt tokens found there at the
    first admission, None before it.
    """

    request: EngineRequest
    tokens: list[int]
    prompt_len: int
    order: int = 0
    status: Status = Status.WAITING
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    slot: int | None = None
    epoch: int = 0
    in_flight: int = 0
    cached_tokens: int | None = None
    hashes: list[bytes] = field(default_factory=list)
    registered: int = 0

    @classmethod
    def of(cls, request: EngineRequest) -> Sequence:
        """A waiting sequence. Replayed output tokens count as output."""
        prompt = list(request.prompt_token_ids)
        return cls(request=request, tokens=prompt + list(request.output_token_ids), prompt_len=len(prompt))

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def output_len(self) -> int:
        """Output tokens known to the host."""
        return len(self.tokens) - self.prompt_len

    @property
    def planned_len(self) -> int:
        """Length once every step in flight has delivered its token."""
        return len(self.tokens) + self.in_flight

    @property
    def uncomputed(self) -> int:
        """Tokens that must still be planned before the next one can be sampled: 1 in a sequence that decodes."""
        return self.planned_len - self.computed


@dataclass(frozen=True)
class RowPlan:
    """One sequence's part of a step: compute tokens [start, start + count) and, if `samples`, draw the next one.

    `tokens`: the host's values for the tokens computed; shorter than `count` (by one) when the last is still on the
    device, where the previous step put it. `pages`: the sequence's page table so far.
    """

    sequence: Sequence
    epoch: int
    slot: int
    start: int
    count: int
    samples: bool
    tokens: tuple[int, ...]
    pages: tuple[int, ...]


class StepPlan(NamedTuple):
    """What one step computes. `rows` in the order in which they are packed; at most `max_seqs` of them."""

    rows: tuple[RowPlan, ...]

    @property
    def num_tokens(self) -> int:
        """Real tokens in the step."""
        return sum(row.count for row in self.rows)
