"""What a config.json leaves out is what transformers' config class fills in."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from slipstream.models.registry import FAMILIES, family

TYPES = [*(row.model_types[0] for row in FAMILIES), "deepseek_v3"]
NULL_HEADS = ("llama", "qwen2", "qwen3", "phi3", "olmo2", "granite")  # the others do not take null for these
CASES = [
    *((name, {}) for name in TYPES),
    *((name, {"num_key_value_heads": None}) for name in NULL_HEADS),
    *((name, {"use_sliding_window": True}) for name in ("qwen2", "qwen3")),
]
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
STATED = ("llama", "mistral", "deepseek_v2", "deepseek_v3")


@pytest.mark.parametrize(("model_type", "change"), CASES, ids=str)
def test_defaults(model_type: str, change: dict[str, Any]) -> None:
    """All keys with transformers' defaults mean what no keys at all mean. Files of STATED must say their sizes."""
    complete = AutoConfig.for_model(model_type, **change).to_dict()
    bare = {"model_type": model_type, **change}
    if model_type in STATED:
        bare |= {name: complete[name] for name in SIZES}
    read = family(bare).from_hf
    assert read(bare) == read(complete)
