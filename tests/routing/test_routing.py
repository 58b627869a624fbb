"""The choice among engines, as numbers."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.routing import BLOCK_TOKENS, Candidate, Memory, Weights, choose, cost, digests


def test_digests_name_beginnings() -> None:
    text = list(range(3 * BLOCK_TOKENS + 5))
    whole = digests(text)
    assert len(whole) == 3 and len(set(whole)) == 3
    assert digests(text[: 2 * BLOCK_TOKENS]) == whole[:2]
    assert digests(text[: BLOCK_TOKENS - 1]) == []
    changed = digests([*text[:BLOCK_TOKENS], 2**63 - 1, *text[BLOCK_TOKENS + 1 :]])
    assert changed[0] == whole[0] and changed[1] != whole[1] and changed[2] != whole[2]
    # A block is named with what is before it: the same tokens elsewhere are another block.
    assert digests(text[BLOCK_TOKENS:])[0] != whole[1]


def test_a_memory_knows_beginnings_and_forgets_ends_first() -> None:
    memory = Memory(4 * BLOCK_TOKENS)
    first, second = digests(range(3 * BLOCK_TOKENS)), digests(range(1000, 1000 + 2 * BLOCK_TOKENS))
    memory.add(first)
    assert memory.match(first) == 3 * BLOCK_TOKENS and memory.match(second) == 0
    assert memory.match([*first[:2], *second]) == 2 * BLOCK_TOKENS
    memory.add(second)
    assert len(memory) == 4
    assert memory.match(first) == 2 * BLOCK_TOKENS and memory.match(second) == 2 * BLOCK_TOKENS
    memory.add(first)  # used again: now the other one's end goes
    assert memory.match(first) == 3 * BLOCK_TOKENS and memory.match(second) == BLOCK_TOKENS
    memory.clear()
    assert memory.match(first) == 0 and len(memory) == 0


@pytest.mark.parametrize(
    ("candidates", "prompt", "chosen"),
    [
        ([Candidate(sequences=2), Candidate(sequences=1), Candidate(sequences=1)], 10, 1),
        ([Candidate(), Candidate(cached_tokens=512)], 600, 1),
        # A cached prefix is worth a few sequences more, not many.
        ([Candidate(), Candidate(cached_tokens=512, sequences=7)], 600, 1),
        ([Candidate(), Candidate(cached_tokens=512, sequences=9)], 600, 0),
        # Sequences that wait with long prompts weigh more than some that decode.
        ([Candidate(queued_tokens=2000, sequences=1), Candidate(sequences=8)], 100, 1),
        # A full cache costs what others would have to compute again.
        ([Candidate(free_tokens=0), Candidate(free_tokens=4096, sequences=3)], 500, 1),
        ([Candidate(free_tokens=0), Candidate(free_tokens=None, sequences=30)], 500, 0),
    ],
)
def test_choices(candidates: list[Candidate], prompt: int, chosen: int) -> None:
    assert choose(candidates, prompt) == chosen


def test_nobody_to_choose_from() -> None:
    with pytest.raises(ValueError, match="nobody"):
        choose([], 1)


def test_weights_are_prices_in_tokens() -> None:
    candidate = Candidate(cached_tokens=64, queued_tokens=10, sequences=2, free_tokens=20)
    assert cost(candidate, 100) == 36 + 10 + 128 + 16
    assert cost(candidate, 100, Weights(sequence=1, eviction=0.5)) == 36 + 10 + 2 + 8
    assert cost(Candidate(cached_tokens=500), 100) == 0


numbers = st.integers(0, 10_000)
some = st.builds(
    Candidate, cached_tokens=numbers, queued_tokens=numbers, sequences=numbers, free_tokens=st.none() | numbers
)


@given(st.lists(some, min_size=1, max_size=8), numbers)
def test_no_other_candidate_is_cheaper(candidates: list[Candidate], prompt: int) -> None:
    chosen = choose(candidates, prompt)
    assert chosen == choose(candidates, prompt)
    assert all(cost(candidates[chosen], prompt) <= cost(other, prompt) for other in candidates)


def test_it_loads_nothing_large() -> None:
    code = "import sys, slipstream.routing; sys.exit(any(m in sys.modules for m in ('jax', 'numpy', 'zmq')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
