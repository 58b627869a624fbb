"""Published config.json files are accepted whole, and mean what they say."""

from __future__ import annotations

import pytest

from slipstream.models.registry import family
from slipstream.spec.param import params
from tests.models.published_dense import PUBLISHED

# Billions of weights as the models' cards have them, the embedding counted once where it is tied.
BILLIONS = {
    "meta-llama/Llama-3.1-8B": 8.03,
    "meta-llama/Llama-3.2-3B": 3.21,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 0.135,
    "mistralai/Mistral-7B-v0.1": 7.24,
    "mistralai/Mistral-7B-Instruct-v0.3": 7.25,
    "mistralai/Mistral-7B-Instruct-v0.3 as of transformers 4.38": 7.25,
    "mistralai/Mistral-Nemo-Base-2407": 12.25,
    "mistralai/Ministral-8B-Instruct-2410": 8.02,
    "Qwen/Qwen2-0.5B-Instruct": 0.49,
    "Qwen/Qwen2.5-7B": 7.62,
    "Qwen/Qwen2.5-7B-Instruct": 7.62,
    "Qwen/Qwen3-8B": 8.19,
    "Qwen/Qwen3-32B": 32.76,
    "Qwen/Qwen3-Embedding-0.6B": 0.60,
    "google/gemma-2-2b-it": 2.61,
    "google/gemma-2-9b-it": 9.24,
    "google/gemma-2-27b-it": 27.23,
    "google/gemma-3-1b-it": 1.00,
    "microsoft/Phi-3-mini-4k-instruct": 3.82,
    "microsoft/Phi-3.5-mini-instruct": 3.82,
    "microsoft/Phi-4-mini-instruct": 3.84,
    "allenai/OLMo-2-1124-7B-Instruct": 7.30,
    "ibm-granite/granite-3.3-8b-instruct": 8.17,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_size(name: str) -> None:
    config = PUBLISHED[name]
    chosen = family(config)
    c = chosen.from_hf(config)
    count = sum(leaf.size for _, leaf in params(chosen.plan(c)))
    assert count / 1e9 == pytest.approx(BILLIONS[name], abs=0.006)
    assert c.max_position == config["max_position_embeddings"]


def test_rotary_tables_of_phi() -> None:
    """Three quarters of a head of 128 or all of one of 96; the long set, and hotter attention."""
    for name in ("microsoft/Phi-4-mini-instruct", "microsoft/Phi-3.5-mini-instruct"):
        rope = family(PUBLISHED[name]).from_hf(PUBLISHED[name]).rope
        assert len(rope.frequencies) == 48
        assert rope.frequencies[0] == 1.0
        assert rope.frequencies[47] == pytest.approx(10_000 ** -(94 / 96) / 48, rel=1e-6)
        assert rope.magnitude == pytest.approx(1.190238, rel=1e-6)
