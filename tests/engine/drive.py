"""Drives a scheduler by hand: short ways to make one, to make sequences, and to plan and commit steps."""

from __future__ import annotations

from slipstream.api.engine import EngineRequest
from slipstream.api.sampling import TokenSampling
from slipstream.engine.config import EngineConfig
from slipstream.engine.pages import PagePool
from slipstream.engine.request import RowPlan, Sequence, StepPlan
from slipstream.engine.scheduler import Committed, Scheduler
from slipstream.engine.shapes import ShapePolicy


def scheduler(
    *,
    num_pages: int = 64,
    page_size: int = 4,
    max_seqs: int = 4,
    budget: int = 16,
    max_model_len: int = 64,
    policy: str = "fcfs",
    prefix_caching: bool = True,
) -> Scheduler:
    config = EngineConfig(
        page_size=page_size,
        max_seqs=max_seqs,
        max_batched_tokens=budget,
        policy=policy,
        prefix_caching=prefix_caching,
    )
    shapes = ShapePolicy(max_seqs, budget, -(-max_model_len // page_size))
    return Scheduler(config, PagePool(num_pages), shapes, max_model_len)


def sequence(
    name: str,
    prompt: int | list[int],
    *,
    output: tuple[int, ...] = (),
    max_tokens: int = 8,
    min_tokens: int = 0,
    stop: tuple[int, ...] = (),
    priority: int = 0,
    arrival: float = 0.0,
    prompt_logprobs: int | None = None,
) -> Sequence:
    """A number as `prompt` stands for that many tokens that no other name's prompt shares."""
    tokens = [1000 * ord(name[0]) + i for i in range(prompt)] if isinstance(prompt, int) else prompt
    return Sequence.of(
        EngineRequest(
            id=name,
            prompt_token_ids=tokens,
            output_token_ids=list(output),
            sampling=TokenSampling(
                max_tokens=max_tokens, min_tokens=min_tokens, stop_token_ids=stop, prompt_logprobs=prompt_logprobs
            ),
            priority=priority,
            arrival=arrival,
        )
    )


def plan(engine: Scheduler) -> StepPlan:
    result = engine.schedule()
    assert result is not None
    return result


def brief(step: StepPlan) -> list[tuple[str, int, int, bool]]:
    return [(row.sequence.id, row.start, row.count, row.samples) for row in step.rows]


def commit(engine: Scheduler, step: StepPlan, token: int = 7) -> list[Committed | None]:
    return [engine.commit(row, token if row.samples else None) for row in step.rows]


def run(engine: Scheduler, steps: int, token: int = 7) -> None:
    """Steps whose results are read at once."""
    for _ in range(steps):
        commit(engine, plan(engine), token)


def only(step: StepPlan) -> RowPlan:
    (row,) = step.rows
    return row
