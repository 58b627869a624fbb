"""Every variant of every family against transformers, in float32, from one tiny checkpoint that transformers wrote."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from slipstream.models.llm.stack import within
from tests.models.harness import Model, difference, prompt_of
from tests.models.variants import VARIANTS
from tests.parity import reference

TOLERANCE = 1e-4
PROMPT, NEW = 41, 64


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    """Logits of a whole prompt and of 64 given tokens decoded after it; 64 greedy tokens after it."""
    theirs = reference.write_checkpoint(VARIANTS[name], tmp_path)
    ours = Model.open(tmp_path)
    prompt = prompt_of(ours.config.vocab_size, PROMPT)
    given = prompt_of(ours.config.vocab_size, NEW, seed=1)
    our_session, their_session = ours.session([PROMPT + NEW], PROMPT), reference.Session(theirs)
    assert difference(our_session.step(prompt)[0], their_session.step(prompt)) < TOLERANCE
    assert difference(our_session.feed(given), their_session.feed(given)) < TOLERANCE
    our_tokens = ours.session([PROMPT + NEW], PROMPT).greedy(prompt, NEW)
    assert our_tokens == reference.Session(theirs).greedy(prompt, NEW)


def test_dynamic_scaling_past_the_limit(tmp_path: Path) -> None:
    """Decoding over the length where the base starts to grow: transformers' numbers, token by token."""
    config = VARIANTS["llama-dynamic"]
    theirs = reference.write_checkpoint(config, tmp_path)
    ours = Model.open(tmp_path)
    limit = config["max_position_embeddings"]
    prompt, given = prompt_of(97, limit), prompt_of(97, 90, seed=2)
    our_session, their_session = ours.session([limit + 90], limit), reference.Session(theirs)
    our_session.step(prompt)
    their_session.step(prompt)
    expected = their_session.feed(given)
    assert difference(our_session.feed(given), expected) < TOLERANCE
    plain = reference.write_checkpoint({**config, "rope_scaling": None}, tmp_path)
    unscaled = reference.Session(plain)
    unscaled.step(prompt)
    assert (
        difference(unscaled.feed(given), expected) > 0.05
    )  # the scaling is felt, so the comparison above says something


def test_longrope_within_the_pretraining_length(tmp_path: Path) -> None:
    """An engine of short contexts has the short set of factors, as transformers has for a short prompt."""
    config = VARIANTS["phi3-tied-mqa-partial"]
    limit = config["original_max_position_embeddings"]
    theirs = reference.write_checkpoint(config, tmp_path)
    long = Model.open(tmp_path)
    ours = replace(long, config=within(long.config, limit))
    prompt = prompt_of(97, limit)
    expected = reference.Session(theirs).step(prompt)
    assert difference(ours.session([limit], limit).step(prompt)[0], expected) < TOLERANCE
    assert difference(long.session([limit], limit).step(prompt)[0], expected) > 0.01


def test_attention_soft_cap(tmp_path: Path) -> None:
    """transformers 5.23 reads `attn_logit_softcapping` for Gemma 3 and never passes it on; its attention can cap."""
    config = {**VARIANTS["gemma3"], "attn_logit_softcapping": 0.8}
    theirs = reference.write_checkpoint(config, tmp_path)
    ours = Model.open(tmp_path)
    prompt = prompt_of(ours.config.vocab_size, PROMPT)
    logits = ours.session([PROMPT], PROMPT).step(prompt)[0]
    assert difference(logits, reference.Session(theirs, softcap=0.8).step(prompt)) < TOLERANCE
    assert difference(logits, reference.Session(theirs).step(prompt)) > 0.01


def test_text_part_of_a_multimodal_checkpoint(tmp_path: Path) -> None:
    """A Gemma3ForConditionalGeneration that transformers wrote: its image tower is left unread."""
    theirs = reference.write_multimodal(VARIANTS["gemma3"], tmp_path)
    ours = Model.open(tmp_path)
    prompt = prompt_of(ours.config.vocab_size, PROMPT)
    assert (
        difference(ours.session([PROMPT], PROMPT).step(prompt)[0], reference.Session(theirs).step(prompt)) < TOLERANCE
    )
