"""Qwen 2 and 3."""

from __future__ import annotations

from typing import Any

from tests.models.variants.llama import YARN

QWEN2: dict[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "sliding_window": 9,
    "max_window_layers": 1,
    "use_sliding_window": False,
}

QWEN3: dict[str, Any] = {
    **QWEN2,
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "head_dim": 12,
    "attention_bias": False,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "qwen2-tied-mha-windows": {**QWEN2, "tie_word_embeddings": True, "num_key_value_heads": 4,
                               "use_sliding_window": True},
    "qwen2-mqa-yarn": {**QWEN2, "num_key_value_heads": 1, "rope_scaling": YARN},
    "qwen2-dynamic-listed-windows": {**QWEN2, "max_position_embeddings": 48, "use_sliding_window": True,
                                     "rope_scaling": {"rope_type": "dynamic", "factor": 3.0},
                                     "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "qwen3": QWEN3,
    "qwen3-tied-mha-linear": {**QWEN3, "tie_word_embeddings": True, "num_key_value_heads": 4,
                              "rope_scaling": {"type": "linear", "factor": 2.5}},
    "qwen3-biased-windows-llama3": {**QWEN3, "attention_bias": True, "use_sliding_window": True, "rope_scaling":
                                    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                     "high_freq_factor": 4.0, "original_max_position_embeddings": 96}},
}  # fmt: skip
