"""Random lives of many requests on the simulated device: nothing leaks, nothing is shared wrongly, nobody starves."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from slipstream.engine.policy import POLICIES
from tests.engine.simulated import VOCAB, World, reply, request


class Lives(RuleBasedStateMachine):
    """Hypothesis chooses the engine's size and what happens in which order."""

    @initialize(
        page_size=st.integers(1, 4),
        full_pages=st.integers(2, 5),
        more_pages=st.integers(0, 6),
        max_seqs=st.integers(1, 5),
        more_budget=st.integers(0, 9),
        policy=st.sampled_from(sorted(POLICIES)),
        prefix_caching=st.booleans(),
        behind=st.integers(0, 2),
    )
    def start(
        self,
        page_size: int,
        full_pages: int,
        more_pages: int,
        max_seqs: int,
        more_budget: int,
        policy: str,
        prefix_caching: bool,
        behind: int,
    ) -> None:
        self.world = World(
            num_pages=full_pages + more_pages,
            page_size=page_size,
            max_seqs=max_seqs,
            budget=max_seqs + more_budget,
            max_model_len=full_pages * page_size,
            policy=policy,
            prefix_caching=prefix_caching,
            behind=behind,
        )

    @rule(
        stem=st.integers(0, 1),
        shared=st.integers(0, 12),
        tail=st.lists(st.integers(0, 1), max_size=4),
        max_tokens=st.integers(1, 10),
        min_tokens=st.integers(0, 4),
        seed=st.integers(0, 2),
        stop=st.booleans(),
        priority=st.integers(0, 2),
        arrival=st.integers(0, 3),
        replayed=st.integers(0, 4),
        prompt_logprobs=st.sampled_from([None, None, None, 0]),
    )
    def add(
        self,
        stem: int,
        shared: int,
        tail: list[int],
        max_tokens: int,
        min_tokens: int,
        seed: int,
        stop: bool,
        priority: int,
        arrival: int,
        replayed: int,
        prompt_logprobs: int | None,
    ) -> None:
        prompt = ([stem] * shared + tail or [stem])[: self.world.max_model_len - 1]
        new = request(
            str(len(self.world.requests)),
            prompt,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            seed=seed,
            stop=stop,
            priority=priority,
            arrival=float(arrival),
            prompt_logprobs=prompt_logprobs,
        )
        known = reply(new, self.world.max_model_len)[0][:-1][:replayed]
        self.world.add(msgspec.structs.replace(new, output_token_ids=known))

    @precondition(lambda self: self.world.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.world.abort(data.draw(st.sampled_from(sorted(self.world.requests))))

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.world.step()
            self.world.check()

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()


TestLives = Lives.TestCase
TestLives.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


SMALL = {"num_pages": 9, "page_size": 2, "max_seqs": 4, "budget": 6, "max_model_len": 18}
WORLDS: dict[str, dict[str, Any]] = {
    "tight": SMALL,
    "priority": SMALL | {"policy": "priority"},
    "uncached": SMALL | {"prefix_caching": False},
    "roomy": {"num_pages": 120, "page_size": 4, "max_seqs": 8, "budget": 24, "max_model_len": 40},
    "single": {"num_pages": 5, "page_size": 4, "max_seqs": 1, "budget": 3, "max_model_len": 20},
    "page of one": {"num_pages": 20, "page_size": 1, "max_seqs": 5, "budget": 5, "max_model_len": 17},
    "slow prefill": {
        "num_pages": 24,
        "page_size": 1,
        "max_seqs": 5,
        "budget": 5,
        "max_model_len": 20,
        "policy": "priority",
    },
    "results at once": SMALL | {"behind": 0},
    "results late": SMALL | {"behind": 3, "policy": "priority"},
}

# Few and long: a low decode must be able to take the page that a high prompt, half computed, needs in the same step.
CROWDS = {"slow prefill": {"pause": 40, "most_tokens": 40}}


def crowd(world: World, *, count: int, seed: int, pause: int = 3, most_tokens: int = 12) -> World:
    """`count` random requests with shared beginnings, some cancelled, through a small engine.

    `pause`: for three steps with arrivals, how many without. `most_tokens`: bound of `max_tokens`.
    """
    rng = random.Random(seed)
    stems = [[rng.randrange(VOCAB) for _ in range(world.max_model_len)] for _ in range(3)]
    while len(world.requests) < count:
        for _ in range(rng.choice([0] * pause + [1, 1, 4])):
            stem = rng.choice(stems)[: rng.randrange(1, world.max_model_len - 2)]
            tail = [rng.randrange(VOCAB) for _ in range(rng.randrange(3))]
            world.add(
                request(
                    str(len(world.requests)),
                    (stem + tail)[: world.max_model_len - 1],
                    max_tokens=rng.randrange(1, most_tokens),
                    min_tokens=rng.randrange(3),
                    seed=rng.randrange(3),
                    stop=rng.random() < 0.5,
                    priority=rng.randrange(3),
                    arrival=float(len(world.requests) // 4),
                    prompt_logprobs=rng.choice([None, None, None, 5]),
                )
            )
        if world.requests and rng.random() < 0.1:
            world.abort(str(rng.randrange(max(0, len(world.requests) - 8), len(world.requests))))
        world.step()
        world.check()
    world.drain()
    return world


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_thousands_of_requests_get_what_they_would_get_alone(name: str) -> None:
    world = crowd(World(**WORLDS[name]), count=700, seed=1, **CROWDS.get(name, {}))
    assert len(world.answers) > 500 and len(world.aborted) > 20
    assert (world.scheduler.preemptions > 50) == (name not in ("roomy", "single")), world.scheduler.preemptions
    assert (world.scheduler.prefix_hits > 500) == (name != "uncached"), world.scheduler.prefix_hits


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_the_same_arrivals_give_the_same_plans(name: str) -> None:
    first, second = (crowd(World(**WORLDS[name]), count=80, seed=2) for _ in range(2))
    assert first.plans == second.plans
    assert crowd(World(**WORLDS[name]), count=80, seed=3).plans != first.plans


@pytest.mark.parametrize("name", [name for name in sorted(WORLDS) if "policy" not in WORLDS[name]])
def test_nobody_starves_under_fcfs(name: str) -> None:
    """However many come later, requests start in the order of arrival, each within the work that was there before."""
    world, rng = World(**WORLDS[name]), random.Random(4)
    started: dict[str, int] = {}
    due: dict[str, int] = {}
    turn = 0
    while len(started) < 150:
        ahead = sum(
            2 * (s.request.sampling.max_tokens + len(s.tokens))
            for s in (*world.scheduler.running, *world.scheduler.waiting)
        )
        number = len(world.requests)
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, world.max_model_len - 1))]
        world.add(request(str(number), prompt, max_tokens=rng.randrange(1, 9), arrival=float(number)))
        due[str(number)] = turn + ahead + 3
        world.step()
        for name_, *_ in world.plans[-1]:
            started.setdefault(name_, turn)
        turn += 1
    assert [int(name_) for name_ in started] == list(range(len(started)))
    assert all(turn_ <= due[name_] for name_, turn_ in started.items())
    for name_ in world.requests.keys() - world.answers.keys():
        world.abort(name_)
    world.drain()
