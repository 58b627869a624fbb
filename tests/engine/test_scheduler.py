"""Order, budget, slots, ends and refusals."""

from __future__ import annotations

import pytest

from slipstream.engine.request import Status
from slipstream.engine.scheduler import Committed
from slipstream.errors import PromptTooLong, RequestError
from tests.engine.drive import brief, commit, only, plan, run, scheduler, sequence


def test_one_request_one_step_ahead() -> None:
    engine = scheduler()
    a = sequence("a", 6, max_tokens=3)
    engine.add(a)
    assert (engine.num_waiting, engine.num_running) == (1, 0)
    prefill = plan(engine)
    assert only(prefill).tokens == tuple(a.tokens) and len(only(prefill).pages) == 2
    assert (a.computed, a.in_flight, a.cached_tokens) == (6, 1, 0)
    second = plan(engine)  # before the first token is known
    assert brief(second) == [("a", 6, 1, True)] and only(second).tokens == ()
    assert commit(engine, prefill, 50) == [Committed(a, 50)]
    third = plan(engine)
    assert brief(third) == [("a", 7, 1, True)] and only(third).tokens == ()
    assert commit(engine, second, 51) == [Committed(a, 51)]
    assert engine.schedule() is None, "max_tokens are planned already"
    assert commit(engine, third, 52) == [Committed(a, 52, "length", None)]
    assert a.tokens[6:] == [50, 51, 52] and a.status is Status.FINISHED
    assert (engine.num_running, engine.pages.used, engine.schedule()) == (0, 0, None)


def test_at_most_two_tokens_are_in_flight() -> None:
    engine = scheduler()
    engine.add(sequence("a", 3))
    first, _ = plan(engine), plan(engine)
    assert engine.schedule() is None
    commit(engine, first)
    assert brief(plan(engine)) == [("a", 4, 1, True)]
    assert engine.schedule() is None


def test_without_running_ahead_the_plan_states_the_token() -> None:
    engine = scheduler()
    engine.add(sequence("a", 3))
    run(engine, 1, token=9)
    assert only(plan(engine)).tokens == (9,)


def test_long_prompts_are_chunked_and_mixed_with_decodes() -> None:
    engine = scheduler(budget=8)
    engine.add(sequence("a", 3, max_tokens=20))
    engine.add(sequence("b", 20, arrival=1))
    assert brief(plan(engine)) == [("a", 0, 3, True), ("b", 0, 5, False)]
    assert brief(plan(engine)) == [("a", 3, 1, True), ("b", 5, 7, False)]
    assert brief(plan(engine)) == [("b", 12, 8, True)], "a has two tokens in flight"


def test_a_decode_in_every_step_and_a_chunk_in_every_step() -> None:
    engine = scheduler(max_seqs=3, budget=4)
    for name in "ab":
        engine.add(sequence(name, 1, max_tokens=60))
    run(engine, 1)
    engine.add(sequence("c", 40, arrival=1))
    for step in range(20):
        planned = plan(engine)
        assert brief(planned)[-1] == ("c", 2 * step, 2, step == 19)
        assert [row.sequence.id for row in planned.rows] == ["a", "b", "c"]
        commit(engine, planned)


def test_slots_limit_how_many_run() -> None:
    engine = scheduler(max_seqs=2)
    for i, name in enumerate("abc"):
        engine.add(sequence(name, 2, max_tokens=1, arrival=i))
    first = plan(engine)
    assert [(row.sequence.id, row.slot) for row in first.rows] == [("a", 0), ("b", 1)]
    assert engine.schedule() is None
    commit(engine, first)
    assert brief(plan(engine)) == [("c", 0, 2, True)]


@pytest.mark.parametrize(
    ("token", "kwargs", "reason", "stop_reason"),
    [
        (5, {"stop": (5, 6)}, "stop", 5),
        (6, {"stop": (5, 6), "max_tokens": 1}, "stop", 6),
        (7, {"stop": (5, 6)}, None, None),
        (7, {"stop": (5, 6), "max_tokens": 1}, "length", None),
        (5, {"stop": (5,), "min_tokens": 1}, None, None),
        (5, {"stop": (5,), "min_tokens": 1, "output": (1,)}, "stop", 5),
        (7, {"max_tokens": 3, "output": (1, 2)}, "length", None),
        (7, {"max_tokens": 3, "output": (1,)}, None, None),
    ],
)
def test_why_a_sequence_ends(
    token: int, kwargs: dict[str, object], reason: str | None, stop_reason: int | None
) -> None:
    engine = scheduler()
    a = sequence("a", 3, **kwargs)  # type: ignore[arg-type]
    engine.add(a)
    assert commit(engine, plan(engine), token) == [Committed(a, token, reason, stop_reason)]  # type: ignore[arg-type]


def test_the_context_ends_a_sequence() -> None:
    engine = scheduler(max_model_len=6, page_size=2, num_pages=3)
    a = sequence("a", 4, max_tokens=100)
    engine.add(a)
    first, second = plan(engine), plan(engine)
    assert engine.schedule() is None
    assert commit(engine, first) == [Committed(a, 7)]
    assert engine.schedule() is None
    assert commit(engine, second) == [Committed(a, 7, "length")]
    assert len(a.tokens) == 6


def test_what_is_in_flight_behind_the_end_is_dropped() -> None:
    engine = scheduler()
    a = sequence("a", 3, stop=(5,))
    engine.add(a)
    first, second = plan(engine), plan(engine)
    commit(engine, first, 5)
    assert engine.pages.used == 0
    assert commit(engine, second, 8) == [None]
    assert a.tokens[3:] == [5]


def test_abort_waiting_running_and_unknown() -> None:
    engine = scheduler(max_seqs=1)
    a, b = sequence("a", 3), sequence("b", 3, arrival=1)
    engine.add(a)
    engine.add(b)
    step = plan(engine)
    assert engine.abort("b") is b and engine.num_waiting == 0
    assert engine.abort("a") is a and engine.num_running == engine.pages.used == 0
    assert engine.abort("a") is None and engine.abort("x") is None
    assert commit(engine, step) == [None]
    engine.finish(a)
    engine.add(sequence("a", 3))  # the id is free again
    assert brief(plan(engine)) == [("a", 0, 3, True)]


def test_the_queue_follows_the_policy() -> None:
    for policy, expected in {"fcfs": ["c", "a", "b"], "priority": ["b", "c", "a"]}.items():
        engine = scheduler(policy=policy)
        for name, priority, arrival in (("a", 1, 5.0), ("b", 0, 9.0), ("c", 1, 3.0)):
            engine.add(sequence(name, 2, priority=priority, arrival=arrival))
        assert [s.id for s in engine.waiting] == expected
        assert [row.sequence.id for row in plan(engine).rows] == expected


def test_replayed_output_is_computed_as_prompt_and_counted_as_output() -> None:
    engine = scheduler()
    a = sequence("a", 3, output=(7, 8), max_tokens=3)
    engine.add(a)
    step = plan(engine)
    assert brief(step) == [("a", 0, 5, True)] and only(step).tokens[3:] == (7, 8)
    assert engine.schedule() is None
    assert commit(engine, step, 9) == [Committed(a, 9, "length")]


def test_requests_that_cannot_work_are_refused() -> None:
    engine = scheduler(max_model_len=8, page_size=4, num_pages=2)
    with pytest.raises(PromptTooLong, match="the prompt has 8 tokens and the context 8"):
        engine.add(sequence("a", 8))
    with pytest.raises(RequestError, match="has all of its max_tokens \\(2\\) already"):
        engine.add(sequence("a", 3, output=(1, 2), max_tokens=2))
    with pytest.raises(RequestError, match="the prompt is empty"):
        engine.add(sequence("a", []))
    engine.add(sequence("a", 7))
    with pytest.raises(RequestError, match="the id 'a' is in the engine already"):
        engine.add(sequence("a", 2))
    assert engine.num_waiting == 1


def test_results_must_match_their_rows() -> None:
    engine = scheduler(budget=4)
    engine.add(sequence("a", 6))
    chunk = only(plan(engine))
    with pytest.raises(ValueError, match="samples=False"):
        engine.commit(chunk, 3)
    assert engine.commit(chunk, None) == Committed(chunk.sequence, None)
    with pytest.raises(ValueError, match="samples=True"):
        engine.commit(only(plan(engine)), None)
