"""A group's leader and followers, in threads of one process: how they meet, agree, speak and part."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from slipstream.cluster import plans
from slipstream.cluster.config import GroupConfig
from slipstream.cluster.line import Line, connect
from slipstream.cluster.plans import Card, Follower, Joined, Leader, join
from slipstream.engine.group import Call
from slipstream.errors import ConfigError, OutOfMemory, WorkerError

CARD = Card(size=3, version="1.0", jax="0.10.2", model="abc", settings={"--tp": "4", "--max-seqs": "8"})

Meet = Callable[[], tuple[Leader, list[Follower]]]


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would have ended a member's process."""
    reasons: list[str] = []
    monkeypatch.setattr(plans, "_end_process", reasons.append)
    monkeypatch.setattr(plans, "_SAY_SO", 0.1)
    return reasons


def config(folder: Path, rank: int, **changes: Any) -> GroupConfig:
    return GroupConfig(size=3, rank=rank, plans=f"unix:{folder / 'plans'}", secret="s", patience=20.0, **changes)


def quiet(stage: str, done: int, total: int | None) -> None: ...


@pytest.fixture
def meet(tmp_path: Path, lost: list[str]) -> Iterator[Meet]:
    """`meet()` gives a leader and its followers, who part after the test."""
    with ExitStack() as parting:

        def make() -> tuple[Leader, list[Follower]]:
            leader, followers = _meet(tmp_path)
            for member in (leader, *followers):
                parting.callback(member.end)
            return leader, followers

        yield make


def _meet(folder: Path) -> tuple[Leader, list[Follower]]:
    with ThreadPoolExecutor(3) as pool:
        joined: list[Future[Joined]] = [pool.submit(join, config(folder, rank), CARD, quiet) for rank in (2, 1, 0)]
        two, one, leader = (each.result(30) for each in joined)
    assert leader.coordinator == one.coordinator == two.coordinator and leader.coordinator.startswith("127.0.0.1:")
    assert isinstance(leader.group, Leader) and isinstance(one.group, Follower) and isinstance(two.group, Follower)
    assert [leader.group.rank, one.group.rank, two.group.rank] == [0, 1, 2] and leader.group.size == 3
    return leader.group, [one.group, two.group]


def test_calls_come_as_they_were_made(meet: Meet, lost: list[str]) -> None:
    leader, followers = meet()
    calls = [Call("step", [np.arange(n, dtype=np.int32), np.full((1, 1), n, np.float32)]) for n in range(50)]
    calls.append(Call("admit", [np.asarray(3, np.int32), np.zeros((2, 0), np.uint8)]))
    for call in calls:
        leader.tell(call)
    ending = threading.Thread(target=leader.end)
    ending.start()
    for follower in followers:
        got = list(follower.calls())
        follower.end()
        assert [call.name for call in got] == [call.name for call in calls]
        for one, other in zip(got, calls, strict=True):
            for array, expected in zip(one.arrays, other.arrays, strict=True):
                assert array.dtype == expected.dtype and array.shape == expected.shape
                np.testing.assert_array_equal(array, expected)
    ending.join(10)
    assert not ending.is_alive() and not lost


def test_the_smallest_number_is_everybodys(meet: Meet, lost: list[str]) -> None:
    leader, followers = meet()
    members = [leader, *followers]
    with ThreadPoolExecutor(3) as pool:
        for numbers in ([5, 9, 7], [9, 5, 7], [1, 1, 1]):
            answers = pool.map(lambda each: each[0].smallest(each[1]), zip(members, numbers, strict=True))
            assert list(answers) == [min(numbers)] * 3
    assert not lost


def test_a_follower_that_cannot_go_on_says_why(meet: Meet) -> None:
    leader, (one, _) = meet()
    one.fail(OutOfMemory("no room: lower --max-seqs"))
    with pytest.raises(OutOfMemory, match="member 1 of the group: no room: lower --max-seqs"):
        leader.smallest(4)


def test_a_member_that_is_gone_ends_the_others(meet: Meet, lost: list[str]) -> None:
    leader, (_, two) = meet()
    two.end()
    until_lost(lost, 1)
    assert "member 2 of the group is gone" in lost[0]
    for line in leader._lines:
        line.close()
    until_lost(lost, 3)
    assert sum("leader of the group is gone" in reason for reason in lost) == 1
    with pytest.raises(WorkerError, match="member 1 of the group is gone"):
        leader.tell(Call("step", []))


def test_what_does_not_fit_is_refused(tmp_path: Path, lost: list[str]) -> None:
    others = {
        r"Slipstream 1\.0 on JAX 0\.10\.2, it is Slipstream 2\.0 on JAX 0\.10\.2: install the same": {"version": "2.0"},
        "group has 3 members, its 2": {"size": 2},
        "another checkpoint than the leader": {"model": "xyz"},
        r"--tp \(4, its 2\)": {"settings": {"--tp": "2", "--max-seqs": "8"}},
    }
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(join, config(tmp_path, 0), CARD, quiet)
        for refusal, changes in others.items():
            with pytest.raises(ConfigError, match=refusal):
                join(config(tmp_path, 1), msgspec.structs.replace(CARD, **changes), quiet)
        with pytest.raises(WorkerError, match="another secret"):
            join(msgspec.structs.replace(config(tmp_path, 1), secret="guess"), CARD, quiet)
        with pytest.raises(ConfigError, match="no member 1 to 2"):
            join(config(tmp_path, 7), CARD, quiet)
        with connect(f"unix:{tmp_path / 'plans'}", 5.0) as stranger:
            Line(stranger, "s", accepted=False, timeout=5.0).send(b"GET / HTTP/1.1")
        assert not leader.done()
        first = pool.submit(join, config(tmp_path, 1), CARD, quiet)
        last = join(config(tmp_path, 2), CARD, quiet)
        for joined in (last, first.result(20), leader.result(20)):
            assert joined.group.size == 3
            joined.group.end()


def test_who_does_not_come_is_named(tmp_path: Path) -> None:
    patient = msgspec.structs.replace(config(tmp_path, 0), patience=0.2)
    with pytest.raises(WorkerError, match=r"of 3 members of the group these did not come to unix:.*0\.2 s: 1, 2"):
        join(patient, CARD, quiet)
    with pytest.raises(WorkerError, match=r"no leader at unix:.*within 0\.2 s"):
        join(msgspec.structs.replace(patient, rank=1, plans=f"unix:{tmp_path / 'nobody'}"), CARD, quiet)


def until_lost(lost: list[str], count: int) -> None:
    waited = threading.Event()
    for _ in range(500):
        if len(lost) >= count:
            return
        waited.wait(0.01)
    raise AssertionError(lost)
