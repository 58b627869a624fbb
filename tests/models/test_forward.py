"""However a sequence is cut into steps and whoever shares them, its logits are the same."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.harness import Model, Session, difference, prompt_of
from tests.models.moe_variants import MOE
from tests.models.variants import VARIANTS

WIDTH = 60
# A token's numbers do not depend on the cut, but a running softmax may add in another order.
TOLERANCE = 1e-5
ALL = VARIANTS | MOE
# What differs in how a token's position is used. test_golden compares decoding with the full forward for every family.
NAMES = (
    "llama-mqa-biased",
    "llama-dynamic",
    "mistral",
    "gemma3-untied-gqa",
    "phi3-tied-mqa-partial",
    "mixtral-tied-window",
    "gpt-oss",
    "deepseek-v3",
)


@cache
def model_of(name: str) -> Model:
    return Model.random(ALL[name])


def session(name: str) -> Session:
    """Two rows, so that every test of a variant shares one compiled step."""
    return model_of(name).session([WIDTH, WIDTH], WIDTH)


def whole(name: str, length: int, seed: int = 0) -> tuple[list[int], np.ndarray]:
    """A prompt and its logits, computed in one step with nobody else there."""
    prompt = prompt_of(ALL[name]["vocab_size"], length, seed)
    return prompt, session(name).step(prompt, [])[0]


@pytest.mark.parametrize("name", NAMES)
def test_prefill_and_decode_equal_the_full_forward(name: str) -> None:
    prompt, expected = whole(name, WIDTH)
    run = session(name)
    parts = [run.step(prompt[:30], [])[0], *(run.step([token], [])[0] for token in prompt[30:])]
    assert difference(np.concatenate(parts), expected) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_chunked_prefill_equals_whole(name: str) -> None:
    prompt, expected = whole(name, WIDTH)
    run = session(name)
    cuts = [0, 7, 8, 41, 43, WIDTH]
    parts = [run.step(prompt[a:b], [])[0] for a, b in pairwise(cuts)]
    assert difference(np.concatenate(parts), expected) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_two_sequences_packed_equal_each_alone(name: str) -> None:
    """One sequence prefills in chunks while the other decodes, then the other way round."""
    (first, first_alone), (second, second_alone) = whole(name, 40), whole(name, 52, seed=3)
    run = session(name)
    parts = [run.step(first[:20], second[:13])]
    parts += [run.step(first[20 + i : 21 + i], second[13 + 5 * i : 18 + 5 * i]) for i in range(5)]
    parts += [run.step(first[25:], second[38:39]), run.step([], second[39:])]
    for alone, row in ((first_alone, 0), (second_alone, 1)):
        assert difference(np.concatenate([part[row] for part in parts]), alone) < TOLERANCE


def test_a_window_hides_what_is_outside_it() -> None:
    """One layer with a window of 9: a token sees itself and the eight before it, no more and no fewer."""
    config = {**VARIANTS["mistral"], "num_hidden_layers": 1}
    model = Model.random(config)
    prompt = prompt_of(config["vocab_size"], 24)
    base = model.session([24], 24).step(prompt)[0]
    for distance, seen in ((8, True), (9, False)):
        changed = list(prompt)
        changed[23 - distance] = (changed[23 - distance] + 1) % config["vocab_size"]
        logits = model.session([24], 24).step(changed)[0]
        assert (np.abs(logits[23] - base[23]).max() > 1e-3) == seen


@pytest.mark.parametrize("name", ["llama-mqa-biased", "gemma3-untied-gqa"])
def test_bfloat16_weights(name: str) -> None:
    """States are bfloat16 throughout, logits float32, and both stay near the float32 ones: 8 bits of mantissa."""
    prompt, expected = whole(name, WIDTH)
    model = model_of(name)
    weights = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.weights)
    narrow = replace(model, weights=weights).session([WIDTH, WIDTH], WIDTH).step(prompt, [])[0]
    assert narrow.dtype == np.float32
    assert 1e-4 < difference(narrow, expected) < 0.15
