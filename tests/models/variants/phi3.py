"""Phi 3."""

from __future__ import annotations

from typing import Any

PHI3: dict[str, Any] = {
    "model_type": "phi3",
    "architectures": ["Phi3ForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "original_max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "sliding_window": 9,
    "pad_token_id": 0,
}

FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 4.0, 8.0]}

VARIANTS: dict[str, dict[str, Any]] = {
    "phi3": PHI3,
    "phi3-gqa-longrope": {**PHI3, "num_key_value_heads": 2, "sliding_window": None,
                          "original_max_position_embeddings": 32, "rope_scaling": {"type": "longrope", **FACTORS}},
    # The longest context is the pretraining one: the short set.
    "phi3-su-short": {**PHI3, "rope_scaling": {"type": "su", "original_max_position_embeddings": 128, **FACTORS}},
    # As Phi 4 mini: three quarters of a head are turned, and the magnitude is not 1.
    "phi3-tied-mqa-partial": {**PHI3, "num_key_value_heads": 1, "tie_word_embeddings": True, "hidden_size": 40,
                              "original_max_position_embeddings": 32, "partial_rotary_factor": 0.8,
                              "rope_scaling": {"type": "longrope", **FACTORS}},
}  # fmt: skip
