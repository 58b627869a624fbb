"""Tiny random models against numbers recorded from transformers (tests/golden/make_models.py)."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from slipstream.models.llm.rope import Rope
from slipstream.models.registry import family
from tests.models.harness import Model, difference, prompt_of
from tests.models.variants import VARIANTS

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "models" / "tiny.npz")
PROMPT, NEW = 41, 64
POSITIONS = [0, 20, 40]
# The other variants differ from these in sizes, or in rotary tables, which are compared below. All run in tests/parity.
WHOLE = ("llama-tied", "llama-mqa-biased", "llama-yarn-mscale", "mistral", "gemma3-untied-gqa", "gemma3-final-cap")


@pytest.mark.parametrize("name", WHOLE)
def test_logits_and_greedy_tokens(name: str) -> None:
    model = Model.random(VARIANTS[name])
    prompt = prompt_of(model.config.vocab_size, PROMPT)
    logits = model.session([PROMPT + NEW], PROMPT).step(prompt)[0]
    assert difference(logits[POSITIONS], GOLDEN[f"{name}/logits"]) < 1e-4
    greedy = model.session([PROMPT + NEW], PROMPT).greedy(prompt, NEW)
    assert greedy == GOLDEN[f"{name}/greedy"].tolist()


@pytest.mark.parametrize("name", VARIANTS)
def test_rotary_tables(name: str) -> None:
    config = family(VARIANTS[name]).from_hf(VARIANTS[name])
    ropes = {key.removeprefix(f"{name}/rope/"): GOLDEN[key] for key in GOLDEN if key.startswith(f"{name}/rope/")}
    assert ropes
    for kind, recorded in ropes.items():
        rope = _rope_of(config, kind)
        np.testing.assert_allclose(rope.frequencies, recorded[:-1], rtol=3e-6)
        assert rope.magnitude == pytest.approx(recorded[-1], rel=1e-6)
        cos, sin = rope.angles(jnp.arange(3, dtype=jnp.int32))
        angles = np.arange(3)[:, None] * recorded[:-1]
        np.testing.assert_allclose(cos, np.cos(angles) * recorded[-1], atol=2e-6)
        np.testing.assert_allclose(sin, np.sin(angles) * recorded[-1], atol=2e-6)


def _rope_of(config: object, kind: str) -> Rope:
    """A llama's one table, or that of gemma3's full or sliding layers."""
    if not kind:
        return config.rope
    return next(k.rope for k in config.kinds if (k.window is None) == (kind == "full_attention"))
