"""Tiny random models against numbers recorded from transformers (tests/golden/make_models.py)."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from slipstream.checkpoint import save_checkpoint
from slipstream.kernels.native import library
from slipstream.kernels.packed import any_packed
from slipstream.models.llm.rope import Rope
from slipstream.models.registry import family
from tests.models.harness import Model, difference, prompt_of, random_source
from tests.models.variants import MODULES, VARIANTS

GOLDEN = {
    key: recorded
    for name in MODULES
    for key, recorded in np.load(Path(__file__).parents[1] / "golden" / "models" / f"{name}.npz").items()
}
PROMPT, NEW = 41, 64
POSITIONS = [0, 20, 40]
# A variant or two of each family. The others differ from these in sizes, or in rotary tables, which are compared below.
# All run in tests/parity.
WHOLE = (
    "llama-mqa-biased",
    "llama-yarn-mscale",
    "mistral",
    "qwen2-tied-mha-windows",
    "qwen3-biased-windows-llama3",
    "gemma2",
    "gemma3-untied-gqa",
    "gemma3-final-cap",
    "phi3-tied-mqa-partial",
    "olmo2-tied-gqa-yarn",
    "granite-untied-mha-biased",
)


@pytest.mark.parametrize("name", WHOLE)
def test_logits_and_greedy_tokens(name: str) -> None:
    """A prompt and 64 tokens, decoded one by one and computed in one step."""
    model = Model.random(VARIANTS[name])
    greedy = GOLDEN[f"{name}/greedy"].tolist()
    prompt = prompt_of(model.config.vocab_size, PROMPT)
    tokens = prompt + greedy[:-1]
    whole = model.session([len(tokens)], len(tokens)).step(tokens)[0]
    session = model.session([len(tokens)], len(tokens))
    decoded = np.concatenate([session.step(prompt)[0], session.feed(greedy[:-1])])
    assert difference(decoded, whole) < 1e-5  # a running softmax may add in another order
    assert difference(decoded[POSITIONS], GOLDEN[f"{name}/logits"]) < 1e-4
    assert decoded[PROMPT - 1 :].argmax(-1).tolist() == greedy


@pytest.mark.skipif(library.reason() is not None, reason="the native kernels were not built here")
@pytest.mark.parametrize("name", WHOLE)
def test_native_kernels(name: str, tmp_path: Path) -> None:
    """Exact precision, float32 weights: the prompt, and then half of the recorded tokens in one more step."""
    save_checkpoint(random_source(VARIANTS[name]), tmp_path, VARIANTS[name])
    model = Model.open(tmp_path, "cpu")
    assert any_packed(model.weights)
    greedy = GOLDEN[f"{name}/greedy"].tolist()
    tokens = prompt_of(model.config.vocab_size, PROMPT) + greedy
    session = model.session([len(tokens)], PROMPT)
    logits = np.concatenate([session.step(tokens[:PROMPT])[0], session.step(tokens[PROMPT : PROMPT + 32])[0]])
    assert difference(logits[POSITIONS], GOLDEN[f"{name}/logits"]) < 1e-4
    assert logits[PROMPT - 1 :].argmax(-1).tolist() == greedy[:33]


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
    """The one table of a model, or that of gemma3's full or sliding layers."""
    if not kind:
        return config.kinds[0].rope if hasattr(config, "kinds") else config.rope
    return next(k.rope for k in config.kinds if (k.window is None) == (kind == "full_attention"))
