"""Granite 3."""

from __future__ import annotations

from typing import Any

from tests.models.variants.llama import YARN

GRANITE: dict[str, Any] = {
    "model_type": "granite",
    "architectures": ["GraniteForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.25,
    "residual_multiplier": 0.22,
    "logits_scaling": 16.0,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "granite": GRANITE,
    "granite-untied-mha-biased": {**GRANITE, "tie_word_embeddings": False, "num_key_value_heads": 4,
                                  "attention_bias": True, "mlp_bias": True, "rope_scaling": YARN},
    "granite-mqa-longrope": {**GRANITE, "num_key_value_heads": 1, "rope_scaling":
                             {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 32,
                              "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 4.0, 8.0]}},
}  # fmt: skip
