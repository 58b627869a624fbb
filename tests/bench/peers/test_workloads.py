"""How numbers follow from times, checked by hand."""

from __future__ import annotations

import pytest

from slipstream.bench.peers.workloads import LONGEST, MOST_STREAMS, WORKLOADS, first_ms, prompt_rate, together, whole

LATE = [[1.0, 2.0, 3.0, 4.0, 5.0], [2.5, 3.5, 4.5, 5.5, 6.5]]
"""The second stream begins when the first has two tokens, and ends after it."""


def test_decode_counts_only_while_all_streams_decode() -> None:
    # From 2.5 to 5.0: three tokens of the first (3, 4, 5) and two of the second (3.5, 4.5).
    assert together(LATE) == pytest.approx(5 / 2.5)


def test_decode_of_one_stream_leaves_the_prompt_out() -> None:
    assert together([[10.0, 10.1, 10.2, 10.3]]) == pytest.approx(10)


def test_streams_that_never_decode_together_have_no_rate() -> None:
    with pytest.raises(ValueError, match="did not decode together"):
        together([[1.0, 2.0], [3.0, 4.0]])


def test_the_whole_run_counts_from_the_start() -> None:
    assert whole(LATE) == pytest.approx(10 / 6.5)


def test_prompts() -> None:
    assert first_ms([[0.25]]) == 250
    assert prompt_rate(512)([[0.5], [1.0]]) == 1024


def test_every_round_has_prompts_of_its_own_and_every_participant_the_same() -> None:
    workload = WORKLOADS["decode-8"]
    one = workload.prompts("0/1", 1000)
    assert one == workload.prompts("0/1", 1000) != workload.prompts("0/2", 1000)
    assert [len(prompt) for prompt in one] == [128] * 8
    assert min(map(min, one)) >= 300 and max(map(max, one)) < 1000


def test_the_largest_workload_is_what_peers_make_room_for() -> None:
    assert (MOST_STREAMS, LONGEST) == (32, 513)
    assert all(workload.largest <= LONGEST for workload in WORKLOADS.values())
