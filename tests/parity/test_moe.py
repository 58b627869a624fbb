"""Every variant with mixtures of experts against transformers, in float32, from one tiny checkpoint as published."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.harness import Model, difference, prompt_of
from tests.models.moe_variants import MOE
from tests.parity import reference

TOLERANCE = 1e-4
PROMPT, NEW = 41, 64


@pytest.mark.parametrize("name", MOE)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    """Logits of a whole prompt and of 64 given tokens decoded after it; 64 greedy tokens after it."""
    theirs = reference.write_stored(MOE[name], tmp_path)
    ours = Model.open(tmp_path)
    prompt = prompt_of(ours.config.vocab_size, PROMPT)
    given = prompt_of(ours.config.vocab_size, NEW, seed=1)
    our_session, their_session = ours.session([PROMPT + NEW], PROMPT), reference.Session(theirs)
    assert difference(our_session.step(prompt)[0], their_session.step(prompt)) < TOLERANCE
    assert difference(our_session.feed(given), their_session.feed(given)) < TOLERANCE
    our_tokens = ours.session([PROMPT + NEW], PROMPT).greedy(prompt, NEW)
    assert our_tokens == reference.Session(theirs).greedy(prompt, NEW)
