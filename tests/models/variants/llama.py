"""Llama and Mistral."""

from __future__ import annotations

from typing import Any

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}

# A base this low puts several of the four pairs on the ramp between interpolated and kept.
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 100.0,
}


def _scaled(**scaling: Any) -> dict[str, Any]:
    return {**LLAMA, "rope_scaling": scaling}


VARIANTS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama-tied": {**LLAMA, "tie_word_embeddings": True},
    "llama-mha-derived-head": {**LLAMA, "head_dim": None, "num_key_value_heads": 4},
    "llama-mqa-biased": {**LLAMA, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    "llama-odd-sizes": {**LLAMA, "vocab_size": 89, "hidden_size": 27, "intermediate_size": 35, "num_attention_heads": 3,
                        "num_key_value_heads": 3, "head_dim": 10, "num_hidden_layers": 1},
    "llama-linear": _scaled(type="linear", factor=2.5),
    "llama-dynamic": {**_scaled(rope_type="dynamic", factor=3.0), "max_position_embeddings": 48},
    "llama-yarn": _scaled(**YARN),
    "llama-yarn-mscale": _scaled(**YARN, mscale=0.8, mscale_all_dim=0.5, beta_fast=4.0, beta_slow=0.5, truncate=False),
    "llama-yarn-attention-factor": _scaled(**YARN, attention_factor=1.3),
    "llama-llama3": _scaled(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                            original_max_position_embeddings=96),
    "llama-longrope": _scaled(rope_type="longrope", factor=4.0, original_max_position_embeddings=32,
                              short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[1.0, 2.0, 4.0, 8.0]),
    "mistral": {**LLAMA, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 9},
    "mistral-no-window": {**LLAMA, "model_type": "mistral", "architectures": ["MistralForCausalLM"],
                          "sliding_window": None},
    "mistral-wide-heads": {**LLAMA, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "head_dim": 14,
                           "num_key_value_heads": 4, "sliding_window": None, "tie_word_embeddings": True},
}  # fmt: skip
