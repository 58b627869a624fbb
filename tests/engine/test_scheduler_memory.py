"""Pages: sharing, running out, giving way, admission."""

from __future__ import annotations

import pytest

from slipstream.engine.config import EngineConfig
from slipstream.engine.pages import PagePool
from slipstream.engine.request import Status
from slipstream.engine.scheduler import Committed, Scheduler
from slipstream.engine.shapes import ShapePolicy
from slipstream.errors import ConfigError
from tests.engine.drive import brief, commit, only, plan, run, scheduler, sequence


def test_a_decode_takes_a_page_when_it_crosses_a_border() -> None:
    engine = scheduler(page_size=2)
    engine.add(sequence("a", 1))
    counts = []
    for _ in range(5):
        step = plan(engine)
        counts.append(len(only(step).pages))
        commit(engine, step)
    assert counts == [1, 1, 2, 2, 3]


def test_a_prompt_is_shared_from_the_step_after_it_was_planned() -> None:
    engine = scheduler()
    prompt = list(range(10))
    engine.add(sequence("a", prompt))
    first = plan(engine)
    b = sequence("b", [*prompt, 77])
    engine.add(b)
    second = plan(engine)  # a's results are not known yet
    assert brief(second) == [("a", 10, 1, True), ("b", 8, 3, True)]
    assert second.rows[1].pages[:2] == first.rows[0].pages[:2]
    assert second.rows[1].pages[2] != first.rows[0].pages[2]
    assert b.cached_tokens == 8
    assert (engine.prefix_queries, engine.prefix_hits) == (21, 8)


def test_twins_wait_a_step_rather_than_compute_the_same_prompt() -> None:
    engine = scheduler(budget=40)
    prompt = list(range(10))
    for i in range(3):
        engine.add(sequence(f"n{i}", prompt, arrival=i))
    assert brief(plan(engine)) == [("n0", 0, 10, True)]
    assert brief(plan(engine)) == [("n0", 10, 1, True), ("n1", 8, 2, True), ("n2", 8, 2, True)]


def test_short_twins_have_nothing_to_wait_for() -> None:
    engine = scheduler()
    for i in range(2):
        engine.add(sequence(f"n{i}", [1, 2, 3, 4], arrival=i))  # one block, and the last token is never shared
    assert len(plan(engine).rows) == 2


def test_outputs_are_shared_once_they_are_known() -> None:
    engine = scheduler(page_size=2)
    engine.add(sequence("a", [1, 2, 3], max_tokens=4))
    run(engine, 4, token=7)
    assert engine.num_running == 0
    engine.add(sequence("b", [1, 2, 3, 7, 7, 7, 7, 9]))
    assert brief(plan(engine)) == [("b", 6, 2, True)]


def test_unknown_tokens_are_not_shared() -> None:
    engine = scheduler(page_size=2)
    engine.add(sequence("a", [1, 2, 3]))
    first, second = plan(engine), plan(engine)
    assert engine.prefix is not None and len(engine.prefix) == 1
    commit(engine, first)
    assert len(engine.prefix) == 2, "(3, 7) is known, and the step that computes 7 is planned"
    commit(engine, second)
    assert len(engine.prefix) == 2


def test_prompt_logprobs_compute_the_whole_prompt_but_share_it() -> None:
    engine = scheduler()
    prompt = list(range(9))
    engine.add(sequence("a", prompt, max_tokens=1))
    run(engine, 1)
    b = sequence("b", prompt, max_tokens=1, prompt_logprobs=0)
    engine.add(b)
    step = plan(engine)
    assert brief(step) == [("b", 0, 9, True)] and b.cached_tokens == 0
    commit(engine, step)
    assert (engine.prefix_queries, engine.prefix_hits) == (9, 0), "it asked for nothing"

    fresh = scheduler()
    fresh.add(sequence("a", prompt, max_tokens=1, prompt_logprobs=3))
    run(fresh, 1)
    fresh.add(sequence("b", prompt))
    assert brief(plan(fresh)) == [("b", 8, 1, True)]


def test_prefix_caching_can_be_off() -> None:
    engine = scheduler(prefix_caching=False)
    for name in ("a", "b"):
        engine.add(sequence(name, list(range(9)), max_tokens=1))
    assert brief(plan(engine)) == [("a", 0, 9, True), ("b", 0, 7, False)]
    assert (engine.prefix, engine.prefix_queries, engine.pages.cached) == (None, 0, 0)


def test_the_latest_gives_way_and_goes_on_where_it_was() -> None:
    engine = scheduler(num_pages=4, page_size=2, max_model_len=8)
    a, b = sequence("a", 3), sequence("b", 3, arrival=1)
    engine.add(a)
    engine.add(b)
    run(engine, 1, token=7)
    ahead = plan(engine)
    assert brief(ahead) == [("a", 3, 1, True), ("b", 3, 1, True)]
    step = plan(engine)  # a needs a third page
    assert brief(step) == [("a", 4, 1, True)]
    assert (engine.preemptions, b.status, b.epoch, b.in_flight) == (1, Status.WAITING, 1, 0)
    assert commit(engine, ahead, 8) == [Committed(a, 8), None], "b's token is dropped: it will be sampled again"
    assert b.tokens[3:] == [7]
    engine.abort("a")
    again = plan(engine)
    assert brief(again) == [("b", 2, 2, True)] and again.rows[0].epoch == 1
    assert b.cached_tokens == 0, "of the first admission"
    assert engine.prefix_queries == 6


def test_the_needing_one_gives_way_if_it_is_the_last() -> None:
    engine = scheduler(num_pages=5, page_size=2, max_model_len=10, budget=16, prefix_caching=False)
    a, b = sequence("a", 5), sequence("b", 4, arrival=1)
    engine.add(a)
    engine.add(b)
    run(engine, 1)
    assert brief(plan(engine)) == [("a", 5, 1, True)], "b would need a third page"
    assert (a.epoch, b.epoch, b.status) == (0, 1, Status.WAITING)


def test_one_that_is_planned_already_can_still_give_way() -> None:
    engine = scheduler(num_pages=4, page_size=2, max_model_len=8, policy="priority", budget=4)
    low, high = sequence("low", 1, priority=5), sequence("high", 6, priority=0)
    engine.add(low)
    run(engine, 1)
    engine.add(high)
    step = plan(engine)
    assert brief(step) == [("low", 1, 1, True), ("high", 0, 3, False)]
    commit(engine, step)
    assert brief(plan(engine)) == [("high", 3, 3, True)], "low took the last page, then high needed one"
    assert (low.status, low.epoch, low.in_flight, engine.preemptions) == (Status.WAITING, 1, 0, 1)


def test_nobody_is_preempted_for_pages_that_come_back_in_a_step() -> None:
    engine = scheduler(num_pages=4, page_size=2, max_model_len=8)
    a, b = sequence("a", 4), sequence("b", 4, max_tokens=1, arrival=1)
    engine.add(a)
    engine.add(b)
    first = plan(engine)
    assert engine.schedule() is None, "a needs a page, and b's last token is on its way"
    commit(engine, first)
    assert brief(plan(engine)) == [("a", 4, 1, True)]
    assert engine.preemptions == 0


def test_admission_waits_for_room_for_the_whole_prompt_and_is_not_overtaken() -> None:
    engine = scheduler(num_pages=8, page_size=2, max_model_len=16, budget=4, prefix_caching=False)
    for i, (name, length) in enumerate([("a", 10), ("b", 8), ("c", 1)]):
        engine.add(sequence(name, length, arrival=i))
    for _ in range(3):
        planned = plan(engine)
        assert {row.sequence.id for row in planned.rows} == {"a"}
        commit(engine, planned)
    assert [s.id for s in engine.waiting] == ["b", "c"]
    engine.abort("a")
    assert brief(plan(engine)) == [("b", 0, 4, False)]


def test_replayed_output_in_the_cache_is_not_counted_as_cached_prompt() -> None:
    engine = scheduler(page_size=2)
    engine.add(sequence("a", [1, 2, 3, 4, 5, 6, 7], max_tokens=1))
    run(engine, 1)
    b = sequence("b", [1, 2, 3], output=(4, 5, 6, 7))
    engine.add(b)
    assert brief(plan(engine)) == [("b", 6, 1, True)]
    assert b.cached_tokens == 3


def test_a_pool_or_table_too_small_for_one_sequence_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs 16 pages of 4 tokens, the KV cache has 15: lower max_model_len to 60"):
        scheduler(num_pages=15)
    with pytest.raises(ConfigError, match="a page table has 3: lower max_model_len to 12"):
        Scheduler(EngineConfig(page_size=4), PagePool(9), ShapePolicy(32, 512, 3), 13)
