"""OLMo 2."""

from __future__ import annotations

from typing import Any

from tests.models.variants.llama import YARN

OLMO2: dict[str, Any] = {
    "model_type": "olmo2",
    "architectures": ["Olmo2ForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000.0,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "olmo2": OLMO2,
    "olmo2-tied-gqa-yarn": {**OLMO2, "tie_word_embeddings": True, "num_key_value_heads": 2, "rope_scaling": YARN},
    "olmo2-mqa-biased-dynamic": {**OLMO2, "attention_bias": True, "num_key_value_heads": 1,
                                 "max_position_embeddings": 48,
                                 "rope_scaling": {"rope_type": "dynamic", "factor": 3.0}},
}  # fmt: skip
