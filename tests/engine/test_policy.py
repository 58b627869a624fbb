from __future__ import annotations

import random
from typing import get_args, get_type_hints

import pytest

from slipstream.api.engine import EngineRequest
from slipstream.api.sampling import TokenSampling
from slipstream.engine.config import EngineConfig
from slipstream.engine.policy import POLICIES, victim
from slipstream.engine.request import Sequence


def sequence(name: str, *, priority: int = 0, arrival: float = 0.0, order: int = 0) -> Sequence:
    request = EngineRequest(id=name, prompt_token_ids=[1], sampling=TokenSampling(), priority=priority, arrival=arrival)
    result = Sequence.of(request)
    result.order = order
    return result


SEQUENCES = [
    sequence("early", priority=1, arrival=1.0, order=3),
    sequence("urgent", priority=-5, arrival=9.0, order=2),
    sequence("twin-1", priority=1, arrival=4.0, order=0),
    sequence("twin-2", priority=1, arrival=4.0, order=1),
    sequence("idle", priority=7, arrival=2.0, order=4),
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fcfs", ["early", "idle", "twin-1", "twin-2", "urgent"]),
        ("priority", ["urgent", "early", "twin-1", "twin-2", "idle"]),
    ],
)
def test_order_and_victim(name: str, expected: list[str]) -> None:
    shuffled = random.Random(0).sample(SEQUENCES, len(SEQUENCES))
    assert [s.id for s in sorted(shuffled, key=POLICIES[name])] == expected
    assert victim(shuffled, POLICIES[name]).id == expected[-1]


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_preemption_and_progress_do_not_change_the_place(name: str) -> None:
    moved = sequence("x", priority=2, arrival=3.0, order=1)
    before = POLICIES[name](moved)
    moved.epoch += 1
    moved.tokens += [1, 2, 3]
    assert POLICIES[name](moved) == before


def test_each_policy_of_the_config_exists() -> None:
    assert set(get_args(get_type_hints(EngineConfig)["policy"])) == set(POLICIES)
